// A text goes to the server, which answers with the features that fire in it; a token chosen narrows them to it.
export function startTry() {
  const form = document.getElementById("try");
  if (!form) return;
  const said = form.querySelector("output"), tried = document.getElementById("tried");
  const text = form.elements.text;

  async function run() {
    said.textContent = "running the subject …";
    form.querySelector("button").disabled = true;
    try {
      const answer = await fetch(form.dataset.to, {
        method: "POST",
        headers: { "content-type": "application/json", accept: "application/json" },
        body: JSON.stringify(Object.fromEntries(new FormData(form))),
      });
      if (!answer.ok) throw new Error((await answer.json()).error);
      tried.innerHTML = await answer.text();
      said.textContent = "";
    } catch (error) {
      said.textContent = error.message;
    }
    form.querySelector("button").disabled = false;
  }

  function choose(button) {
    for (const each of tried.querySelectorAll(".strip button")) each.setAttribute("aria-pressed", String(each === button));
    const place = button.dataset.token;
    for (const list of tried.querySelectorAll(".fired")) {
      const keyed = [...list.children].filter((item) => item.dataset.on).map((item) => {
        const values = item.dataset.on.split(" ").map(Number);
        return [item, place === "" ? Math.max(...values) : values[Number(place)]];
      });
      keyed.sort(([, a], [, b]) => b - a);
      for (const [item, value] of keyed) {
        item.hidden = place !== "" && !(value > 0);
        list.append(item);
      }
      const none = list.querySelector("[data-none]");
      if (none) none.hidden = keyed.some(([item]) => !item.hidden);
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const words = new URLSearchParams(new FormData(form));
    if (`?${words}` !== location.search) history.pushState(null, "", `?${words}`); // a link that can be shared
    run();
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); form.requestSubmit(); }
  });
  tried.addEventListener("click", (event) => {
    const button = event.target.closest(".strip button");
    if (button) choose(button);
  });
  addEventListener("popstate", () => {
    text.value = new URLSearchParams(location.search).get("text") ?? "";
    if (text.value) run();
    else tried.replaceChildren();
  });
  if (text.value && text.value === text.defaultValue) run(); // the address' text; one that is being typed waits for Try
}
