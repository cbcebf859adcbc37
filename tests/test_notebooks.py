"""The notebooks in examples/: executed by a real kernel, with what they show; kept without outputs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def executed(name: str, folder: Path) -> list[dict[str, Any]]:
    """What each cell of code showed last, by its type; in a copy of examples/."""
    shutil.copytree(EXAMPLES, folder / "examples")
    notebook = nbformat.read(folder / "examples" / name, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder / "examples")}}
    ).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [next((out.data for out in reversed(cell.outputs) if "data" in out), {}) for cell in cells]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_kept_without_outputs(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


def test_a_run_a_feature_and_a_comparison_are_shown(own_cache: Path, tmp_path: Path) -> None:
    _, run, feature, compared, scores, counts = executed("a_run.ipynb", tmp_path)
    assert "10 features" in run["text/html"]
    assert run["text/html"].count("<tr>") == 1 + 10
    assert 'class="win"' in feature["text/html"]
    assert "token_stats − surroundings" in compared["text/html"]
    for table in (compared, scores):
        assert "<script" not in table["text/html"]
    assert 'class="dataframe"' in scores["text/html"]
    assert "activating" in counts["text/plain"]


def test_planted_sums_are_found_in_the_notebook_too(tmp_path: Path) -> None:
    *_, flagged, _ = executed("composites_of_a_matrix.ipynb", tmp_path)
    assert flagged["text/html"].count("<tr>") == 10
