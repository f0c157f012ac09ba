"""What a reader needs of an executed notebook: its outputs without progress bars, machine paths and plumbing."""

import ast
import copy
import re
from contextlib import suppress
from html import escape
from pathlib import Path

from nbconvert.filters import strip_ansi
from nbformat.v4 import new_markdown_cell, new_output

BAR = re.compile(r"[^\r\n]*?(?:\d+%\|[^|\r\n]*\| [^\[\r\n]*|\d\S* )\[\d+:\d\d[^\]\r\n]*\]")
WIDGET = "application/vnd.jupyter.widget-view+json"
NOT_SOURCE = {"injected-parameters", "papermill-error-cell-tag"}


def prepared(node):
    """A copy with what a reader does not need taken out: progress bars, widgets, injected cells."""
    node = copy.deepcopy(node)
    node.metadata["language_info"] = {"name": "python", "pygments_lexer": "python"}
    cells = []
    for cell in node.cells:
        tags = set(cell.metadata.get("tags", []))
        if tags & NOT_SOURCE:
            continue
        if cell.cell_type == "code":
            if "parameters" in tags:
                cells.append(_parameters_line(node))
                continue
            cell.metadata["shown"] = "never" if "hide-input" in tags else "always" if "show-code" in tags else "folded"
            cell.outputs = _readable(cell)
            if "save" in tags:  # what `save` returns is a path on this machine
                cell.outputs = [output for output in cell.outputs if output.output_type != "execute_result"]
            if not cell.source.strip():
                continue
        cells.append(cell)
    node.cells = cells
    return node


def _parameters_line(node):
    """The values a notebook ran with, as a line of prose in place of its parameters cell."""
    values = {}
    for cell in node.cells:
        if cell.cell_type == "code" and {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
            values |= _literals(cell.source)
    profile = values.get("profile")
    if isinstance(profile, str) and profile.endswith(".toml"):
        values["profile"] = Path(profile).name
    shown = ", ".join(f"<code>{escape(name)} = {escape(repr(value))}</code>" for name, value in values.items())
    return new_markdown_cell(f'<p class="parameters">Run with {shown}</p>')


def _literals(source: str) -> dict:
    values = {}
    for line in ast.parse(source).body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            with suppress(ValueError):
                values[line.targets[0].id] = ast.literal_eval(line.value)
    return values


def _readable(cell) -> list:
    """Streams joined; of stderr only what is no progress bar, folded; widgets dropped."""
    kept, errors = [], ""
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stderr":
            errors += output.text
        elif output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        elif WIDGET not in output.get("data", {}):
            kept.append(output)
        elif "text/html" in output.data:  # what a widget shows where nothing answers
            output.data = {kind: data for kind, data in output.data.items() if kind != WIDGET}
            kept.append(output)
    said = _without_bars(errors)
    if said:
        warned = len(re.findall(r"^\S.*(?:Warning|WARNING)\b", said, re.M))
        cell.metadata["said"] = f"{warned} warning{'s' if warned > 1 else ''}" if warned else "Messages"
        kept.append(new_output("stream", name="stderr", text=said))
    return kept


def _without_bars(text: str) -> str:
    """What was said on stderr apart from progress bars, without the folders of this machine."""
    text = BAR.sub("", strip_ansi(text))
    said = "\n".join(line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip())
    said = re.sub(r"\S*/ipykernel_\d+/\d+\.py:(\d+)", r"line \1 of this cell", said)
    return re.sub(r"(?:/[^\s/:]+)+/([^\s/:]+\.py:\d+)", r"\1", said)
