"""The lesson as a notebook: it runs, and says what its kept outputs say."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebooks" / "lesson.ipynb"
LONGEST = 180  # seconds of a cell


def texts(cell: NotebookNode) -> str:
    """What a cell printed, without the measured speeds and the path of the folder that it ran in."""
    parts = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(line for line in "".join(parts).splitlines() if "steps/s" not in line and "/" not in line)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def kinds(cell: NotebookNode) -> set[str]:
    return {output.output_type for output in cell.outputs} | {kind for o in cell.outputs for kind in o.get("data", {})}


@pytest.mark.extra
def test_the_lesson_says_what_it_said(tmp_path: Path) -> None:
    """Its figures are there; numbers are the kept ones, but for what another machine changes in the last digits."""
    kept, made = (nbformat.read(NOTEBOOK, as_version=4) for _ in range(2))
    for cell in (cell for cell in made.cells if cell.cell_type == "code"):
        cell.outputs = []
    client = NotebookClient(made, timeout=LONGEST, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    code = [(old, new) for old, new in zip(kept.cells, made.cells, strict=True) if old.cell_type == "code"]
    assert sum("image/png" in kinds(new) for _, new in code) == 2
    for old, new in code:
        assert kinds(old) == kinds(new), old.source
        if not old.source.startswith("SWEEP"):
            assert numbers(texts(new)) == pytest.approx(numbers(texts(old)), abs=0.02), old.source


def test_its_outputs_are_kept() -> None:
    """Whoever reads the notebook without running it sees tables and figures, and no error."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert "norm=batch" in "".join(texts(cell) for cell in code)
