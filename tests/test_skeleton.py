"""How this project is built: what a notebook looks like, and who may import whom."""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

PROJECT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("[0-9]*.py"))
PACKAGE = PROJECT / "whisper_sae"
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}

TAGS = {"parameters", "setup", "show-code", "hide-input", "figure", "checks", "nbval-check-output", "save"}
OPENING = ("You will", "You will learn", "You need", "Time")


def faults(path: Path) -> list[str]:
    """Everything in which a notebook departs from the skeleton."""
    text = path.read_text(encoding="utf-8")
    cells = jupytext.reads(text, fmt="py:percent").cells
    return [
        *_opening(path, cells),
        *_parameters(cells),
        *_needed(cells),
        *_measures(text, cells),
    ]


def _opening(path, cells):
    first = cells[0].source if cells and cells[0].cell_type == "markdown" else ""
    title = re.match(r"# (\d+) · (.+)", first)
    if not title:
        yield "must open with a markdown cell `# N · question?`"
    elif int(title[1]) != int(path.stem[:2]):
        yield f"the title says {title[1]}, the file {path.stem[:2]}"
    if title and not title[2].rstrip().endswith("?"):
        yield "the title must be a question"
    if not re.search(r"^> \S", first, re.M):
        yield "no answer in a blockquote under the title"
    for line in OPENING:
        if not re.search(rf"^\*\*{line}\*\*", first, re.M):
            yield f"no line **{line}**"
    if len(re.findall(r"^# ", "\n".join(c.source for c in cells if c.cell_type == "markdown"), re.M)) > 1:
        yield "more than one title"


def _parameters(cells):
    tagged = [cell for cell in cells if "parameters" in _tags(cell)]
    if len(tagged) != 1:
        yield f"{len(tagged)} cells tagged parameters"
        return
    lines = ast.parse(tagged[0].source).body
    names = [
        line.targets[0].id for line in lines if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
    ]
    if len(names) != len(lines) or not all(_literal(line.value) for line in lines if isinstance(line, ast.Assign)):
        yield "the parameters cell must hold literals only"
    if names[:2] != ["profile", "seed"]:
        yield "the parameters must start with profile and seed"
    for line in tagged[0].source.splitlines():
        if line.strip() and "#" not in line:
            yield f"no comment says what `{line}` takes"


def _needed(cells):
    for number, cell in enumerate(cells, 1):
        if _tags(cell) - TAGS:
            yield f"cell {number} has tags that nothing reads: {', '.join(sorted(_tags(cell) - TAGS))}"
    order = [
        tag for cell in cells for tag in ("parameters", "setup", "nbval-check-output", "save") if tag in _tags(cell)
    ]
    said = 'print(f"profile {run.name}, seed {seed}")'
    if said not in "".join(cell.source for cell in cells if "setup" in _tags(cell)):
        yield f"the cell setup must end with {said}: without tags other parameters than those given are used"
    if list(dict.fromkeys(order)) != ["parameters", "setup", "nbval-check-output", "save"]:
        yield f"the cells parameters, setup, nbval-check-output, save must come in this order, got {order}"
    checks = "\n".join(cell.source for cell in cells if "checks" in _tags(cell))
    if "assert " not in checks:
        yield "no cell tagged checks that asserts something"
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    if '<aside class="doubt">' not in prose:
        yield 'no <aside class="doubt">: what would change your mind?'
    if cells[-1].cell_type != "markdown":
        yield "must close with what was found, what was dropped, and what is next"


def _measures(text, cells):
    code = [[line for line in c.source.splitlines() if line.strip()] for c in cells if c.cell_type == "code"]
    read = [[line for line in c.source.splitlines() if line.strip()] for c in cells
            if c.cell_type == "code" and "checks" not in _tags(c)]  # fmt: skip
    words = sum(len(re.findall(r"\w+", c.source)) for c in cells if c.cell_type == "markdown")
    if not 12 <= len(code) <= 30:
        yield f"{len(code)} code cells; 12 to 30 can be followed"
    for lines in code:
        if len(lines) > 25:
            yield f"a cell of {len(lines)} lines ({lines[0]!r}); 25 at most"
    median = statistics.median(map(len, code)) if code else 0
    if median > 12:
        yield f"the median cell has {median:.0f} lines; 12 at most"
    if words < 4.5 * sum(map(len, read)):
        yield f"{words} words for {sum(map(len, read))} lines of code; 4.5 a line at least"
    if len(text.encode()) > 32_000:
        yield f"{len(text.encode()):,} bytes; 32,000 at most"


def _tags(cell):
    return set(cell.metadata.get("tags", []))


def _literal(value):
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_follows_the_skeleton(path):
    assert faults(path) == []


def test_no_two_notebooks_have_one_number():
    numbers = [int(path.stem[:2]) for path in NOTEBOOKS]
    assert numbers == sorted(set(numbers)) and numbers[0] == 0
    assert NOTEBOOKS


@pytest.mark.parametrize(
    "old, new, fault",
    [
        (r"^# # \d+ ", "# # 77 ", "the title says 77"),
        (r"^# # (.+)\?$", r"# # \1.", "must be a question"),
        (r"^# >.*$", "#", "no answer in a blockquote"),
        (r"\*\*You need\*\*", "You need", r"no line \*\*You need"),
        (r"^seed = 0", "seed = int(0)", "literals only"),
        (r"^(profile = .*)\n(seed = .*)$", r"\2\n\1", "start with profile and seed"),
        (r'^# %% tags=\["checks"\]', '# %% tags=["chekcs"]', "tags that nothing reads: chekcs"),
        (r'^# %% tags=\["save"\]', "# %%", "parameters, setup, nbval-check-output, save"),
        (r"aside class=.doubt", "aside class='sure", "what would change your mind"),
        (r"^import pandas as pd$", "\n".join(f"a{i} = 1" for i in range(26)), "25 at most"),
        (r"\Z", "\n\n# %%\n1\n" * 20, "12 to 30 can be followed"),
        (r"^# [^#>%*<|].*$", "#", "words for"),
        (r"\Z", "\n# " + "x" * 32_000, "32,000 at most"),
    ],
)
def test_each_departure_is_noticed(tmp_path, old, new, fault):
    text = NOTEBOOKS[0].read_text(encoding="utf-8")
    broken = re.sub(old, lambda found: found.expand(new.replace("\n", "\\n")), text, flags=re.M)
    assert broken != text
    path = tmp_path / NOTEBOOKS[0].name
    path.write_text(broken, encoding="utf-8")
    assert any(re.search(fault, said) for said in faults(path)), faults(path)


# --- who imports whom


def test_each_layer_imports_from_those_below_it():
    """The contracts stand in pyproject.toml: layers, what knows nothing of torch, and what knows nothing of speech."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_no_module_of_the_package_is_imported_under_another_name():
    for path in [*MODULES.values(), *NOTEBOOKS, *(PROJECT / "tests").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "whisper_sae":
                base = node.module.removeprefix("whisper_sae").lstrip(".")
                renamed = [
                    one.name
                    for one in node.names
                    if one.asname and f"{base}.{one.name}".lstrip(".") in set(MODULES) - {"__main__"}
                ]
                assert not renamed, f"{path.name}: {renamed}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_says_why_it_exists(name):
    assert len(ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8"))) or "") > 40


def test_nothing_imports_a_notebook():
    for path in [*MODULES.values(), *NOTEBOOKS]:
        assert not re.search(r"^\s*(from|import) notebooks", path.read_text(encoding="utf-8"), re.M), path


@pytest.mark.slow
def test_importing_does_no_work():
    """Importing every module prints nothing, writes nothing, opens no socket and leaves random states alone."""
    code = """
import builtins, os, socket, sys
import numpy as np, random, torch
import matplotlib.pyplot, papermill, jupytext, nbconvert.exporters, transformers, pandas, scipy, sklearn.linear_model
states = repr(np.random.get_state()), random.getstate(), torch.get_rng_state().tolist()
def watch(event, details):
    if event == "socket.connect" or (event == "open" and isinstance(details[1], str) and set(details[1]) & set("wax+")):
        if "__pycache__" not in str(details[0]):
            print(event, details)
sys.addaudithook(watch)
for name in sys.argv[1:]:
    __import__("whisper_sae." + name)
assert "dask" not in sys.modules and "distributed" not in sys.modules  # only where there is a cluster
assert states == (repr(np.random.get_state()), random.getstate(), torch.get_rng_state().tolist())
"""
    names = sorted(name for name in MODULES if name.rpartition(".")[2] not in ("__main__", "__init__"))
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, cwd=PROJECT, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]
