"""Keeps each notebook's two halves together: the `.py` that is the source, the `.ipynb` that Jupyter opens.

The `.ipynb` holds no outputs but those that are checked (cells tagged `nbval-check-output`), so that a
change of the text is a small diff and every output in git is one that `pytest --nbval-lax` compares.
Whether two halves agree is read from their contents: modification times mean nothing after a checkout.
"""

import re
from copy import deepcopy
from pathlib import Path

import jupytext
import nbformat
from jupytext.combine import combine_inputs_with_outputs
from jupytext.compare import NotebookDifference, compare_notebooks
from nbformat import NotebookNode

from whisper_sae import atomic

FORMAT = "py:percent"
CHECKED = "nbval-check-output"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
NAME = re.compile(r"\d\d_\w+")


def texts(folder: Path) -> list[Path]:
    """The sources `NN_name.py` of a folder, in order."""
    return sorted(path for path in Path(folder).glob("*.py") if NAME.fullmatch(path.stem))


def read(text: Path) -> NotebookNode:
    """The notebook that a source describes; without a kernel of its own it gets python3."""
    node = jupytext.read(text, fmt=FORMAT)
    node.metadata = NotebookNode(kernelspec=node.metadata.get("kernelspec") or NotebookNode(KERNEL))
    node.nbformat, node.nbformat_minor = 4, 5
    return node


def strip(node) -> NotebookNode:
    """A copy with outputs only in the cells that are checked, and no trace of an execution."""
    node = deepcopy(node)
    node.metadata = NotebookNode(kernelspec=node.metadata.get("kernelspec") or NotebookNode(KERNEL))
    number = 0
    for cell in node.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = NotebookNode(tags=tags) if tags else NotebookNode()
        if cell.cell_type != "code":
            continue
        number += 1
        cell.outputs = [_bare(output, number) for output in _joined(cell.outputs)] if CHECKED in tags else []
        cell.execution_count = number if cell.outputs else None
    return node


def sync(folder: Path) -> list[Path]:
    """Bring each `.ipynb` up to its `.py`; returns the files written.

    Cells keep their ids, and a checked cell keeps its output for as long as its source is unchanged.
    """
    return [path for text in texts(folder) if _write(path := text.with_suffix(".ipynb"), _renewed(text, path))]


def record(folder: Path, executed: dict) -> list[Path]:
    """Like `sync`, but the checked outputs are those of `executed`, a dict from name to executed notebook."""
    written = []
    for text in texts(folder):
        if text.stem not in executed:
            continue
        path = text.with_suffix(".ipynb")
        node = _renewed(text, path)
        ran = [c for c in executed[text.stem].cells if _from_source(c)]
        if [c.source for c in ran] != [c.source for c in node.cells]:
            raise ValueError(f"{text.name}: what was executed is not what the file says now; run it again")
        for cell, done in zip(node.cells, ran, strict=True):
            if cell.cell_type == "code":
                cell.outputs = done.outputs
        if _write(path, strip(node)):
            written.append(path)
    return written


def disagreements(folder: Path) -> list[str]:
    """One line for each pair whose halves do not agree, or whose outputs are not exactly the checked ones."""
    folder = Path(folder)
    faults = []
    for text in texts(folder):
        path = text.with_suffix(".ipynb")
        faults += [f"{path.name}: {fault}" for fault in _faults(text, path)]
    for path in sorted(folder.glob("*.ipynb")):
        if not path.with_suffix(".py").exists():
            faults.append(f"{path.name}: there is no {path.stem}.py beside it; the .py is the source")
    return faults


def _faults(text: Path, path: Path) -> list[str]:
    if not path.exists():
        return [f"missing; `python -m whisper_sae pair` makes it from {text.name}"]
    try:
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
    except Exception as error:
        return [f"not a notebook: {str(error).splitlines()[0]}"]
    try:
        compare_notebooks(book, read(text), fmt=FORMAT)
    except NotebookDifference as error:
        lines = " | ".join(line for line in str(error).splitlines() if line.strip())
        return [f"differs from {text.name}; `python -m whisper_sae pair` updates it ({lines[:160]})"]
    faults = []
    for number, cell in enumerate(book.cells, 1):
        if cell.cell_type != "code":
            continue
        checked = CHECKED in cell.metadata.get("tags", [])
        if checked and not cell.outputs:
            faults.append(f"cell {number} is to be checked and has no output; run `pair --execute`")
        if cell.outputs and not checked:
            faults.append(f"cell {number} keeps an output that nothing checks; run `pair`")
    return faults


def _renewed(text: Path, path: Path) -> NotebookNode:
    """What the `.ipynb` should be: cells of the text, ids and still valid outputs of what is there."""
    node = read(text)
    if not path.exists():
        return strip(node)
    book = nbformat.read(path, as_version=4)
    before = {cell.get("id"): cell.source for cell in book.cells}
    renewed = combine_inputs_with_outputs(node, book, fmt=FORMAT)
    renewed.metadata = read(text).metadata
    seen = set()
    for cell, written in zip(renewed.cells, node.cells, strict=True):
        cell.metadata = written.metadata
        if cell.cell_type == "code" and before.get(cell.get("id")) != cell.source:
            cell.outputs = []
        if cell.get("id") is None or cell.id in seen:
            cell.id = nbformat.v4.new_code_cell().id
        seen.add(cell.id)
    renewed.nbformat_minor = 5
    return strip(renewed)


def _from_source(cell) -> bool:
    return not {"injected-parameters", "papermill-error-cell-tag"} & set(cell.metadata.get("tags", []))


def _joined(outputs: list) -> list:
    """What was printed, in one piece; stderr is no fact, and neither are empty outputs."""
    kept = []
    for output in deepcopy(outputs):
        if output.output_type == "stream" and output.name == "stderr":
            continue
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def _bare(output, number: int):
    if output.output_type == "execute_result":
        output.execution_count = number
    return output


def _write(path: Path, node) -> bool:
    """Write a notebook unless that would change nothing; a reader never sees half a file."""
    text = nbformat.writes(node, version=4).rstrip("\n") + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    atomic.write(path, text)
    return True
