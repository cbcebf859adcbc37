// A label and a comment by hand go to the run's folder when they are saved.
export function startLabel() {
  const form = document.getElementById("label");
  if (!form) return;
  const said = form.querySelector("output");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    said.textContent = "saving …";
    const { label, comment } = Object.fromEntries(new FormData(form));
    try {
      const answer = await fetch(form.dataset.to, {
        method: "POST",
        headers: { "content-type": "application/json", accept: "application/json" },
        body: JSON.stringify({ label, comment }),
      });
      const kept = await answer.json();
      if (!answer.ok) throw new Error(kept.error);
      form.elements.label.value = kept.label;
      form.elements.comment.value = kept.comment;
      said.textContent = kept.changed ? `saved ${kept.changed}` : "removed";
      unsaved = false;
    } catch (error) {
      said.textContent = `not saved: ${error.message}`;
    }
  });
  let unsaved = false;
  form.addEventListener("input", () => { unsaved = true; said.textContent = "not saved yet"; });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
}
