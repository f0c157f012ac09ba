"""Notebooks that run side by side: none before what it needs, the same pages as one by one, and Ctrl-C ends all."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from whisper_sae import pairs, profiles, progress, report

NOTEBOOK = """
# %% [markdown]
# # {number} · Does it wait?
#
# **You will** wait.
# **You need** {need}.

# %% tags=["parameters"]
profile = "demo"
seed = 0

# %%
import os, time
file = open("{log}", "a", buffering=1)
print("{number} begins", os.getpid(), os.environ.get("OMP_NUM_THREADS"), file=file)
start = time.monotonic()
while time.monotonic() < start + {seconds} and "{until}" not in open(file.name).read():
    time.sleep(0.05)
print("{number} ends", file=file)
{last}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Writes notebooks that wait: `folder({"01_a": (what it needs, seconds)})` is where they and their `log` lie.

    They wait less long when `until` is in the log.
    """
    monkeypatch.setenv("WHISPER_SAE_REPORTS", str(tmp_path / "reports"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def write(notebooks: dict, until="never", last="seed"):
        for name, (need, seconds) in notebooks.items():
            told = dict(number=name[:2], need=need, seconds=seconds, log=tmp_path / "log", until=until, last=last)
            text = NOTEBOOK.format(**told)
            (tmp_path / f"{name}.py").write_text(text.lstrip(), encoding="utf-8")
        return tmp_path

    return write


def test_a_notebook_starts_after_those_it_needs_also_where_they_fail(folder, monkeypatch):
    monkeypatch.setattr(report, "_cores", lambda: 6)
    needs = {"01_a": ("nothing", 60), "02_b": ("the results of notebook 1", 0), "03_c": ("nothing", 0)}
    here = folder(needs, "03 ends", last="1 / 0")
    rows = report.run(report.plan(folder=here), jobs=2)
    log = [line.split() for line in (here / "log").read_text().splitlines()]
    order = [" ".join(words[:2]) for words in log]
    assert len(order) == 6 and order[-2:] == ["02 begins", "02 ends"]
    assert order.index("03 ends") < order.index("01 ends"), "side by side"
    assert {words[3] for words in log if words[1] == "begins"} == {"3"}, "half of the cores each"
    assert [(name, row["status"]) for name, row in rows.items()] == [(f"0{n}", "failed") for n in ("1_a", "2_b", "3_c")]
    assert list(json.loads((here / "reports" / "demo" / "run.json").read_text())["notebooks"]) == list(rows)


def test_pages_do_not_depend_on_jobs(folder):
    here = folder({f"0{n}_x": ("nothing", 0) for n in (1, 2)})
    pages = []
    for jobs in (1, 2):
        report.run(report.plan(folder=here), jobs=jobs)
        text = "".join((here / "reports" / "demo" / f"0{n}_x.html").read_text() for n in (1, 2))
        pages.append(re.sub(r"\d+(\.\d)? s\b|\d{4}-\d\d-\d\d.\d\d:\d\d:\d\d", "", text))
    assert pages[0] == pages[1]


INTERRUPTED = """
import signal
from whisper_sae import __main__, report
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore Ctrl-C
report.NOTEBOOKS = report.Path({!r})
raise SystemExit(__main__.main(["--jobs", "2"]))
"""


def test_ctrl_c_kills_what_runs_and_keeps_what_is_done(folder):
    here = folder(
        {"01_a": ("nothing", 0), "02_b": ("nothing", 600), "03_c": ("notebook 1", 600), "04_d": ("notebook 2", 0)}
    )
    command = [sys.executable, "-c", INTERRUPTED.format(str(here))]
    child = subprocess.Popen(command, cwd=report.PROJECT, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        time.sleep(0.1)
        begun = re.findall(r"begins (\d+)", (here / "log").read_text() if (here / "log").exists() else "")
        if len(begun) == 3:
            break
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 130 and said.endswith("whisper_sae: interrupted; what was finished is published\n")
    assert len(begun) == 3 and "Traceback" not in said
    for process in map(int, begun):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    run = json.loads((here / "reports" / "demo" / "run.json").read_text())
    assert list(run["notebooks"]) == ["01_a"] and (here / "reports" / "demo" / "01_a.html").exists()


@pytest.mark.parametrize(
    "said, right",
    [
        ("nothing; [0 · Can it be trusted?](00_x.ipynb) tells what the demo is", ""),
        ("nothing from the other notebooks: no speech, and T5 is not needed", ""),
        ("the results of notebook 1", "1"),
        ("the results of notebooks 1, 2 and 6. Where notebooks", "126"),
        ("the results of notebooks 0 to 2, and for the last section those of notebook 4", "0124"),
    ],
)  # fmt: skip
def test_what_a_notebook_needs_is_read_where_readers_read_it(folder, said, right):
    names = [f"0{n}_x" for n in range(8)]
    node = pairs.read(folder({"07_x": (said, 0)}) / "07_x.py")
    assert "".join(sorted(name[1] for name in report.needed(node, names))) == right


class _Everything(dict):
    """A namespace in which what a cell made is unknown, so that an expression which uses it is left out."""

    def __missing__(self, name):
        raise NameError(name)


@pytest.mark.parametrize("path", pairs.texts(report.NOTEBOOKS), ids=lambda path: path.stem)
def test_notebooks_say_which_others_they_need(path):
    """Every stored result that a cell asks for and no cell of the same notebook makes is of a notebook it names.

    Codes and what they detect are left out: whoever asks for them makes them.
    """
    node = pairs.read(path)
    run = profiles.choose("demo")
    known = _Everything(__builtins__=__builtins__, run=run, seed=0, site=run.focus, concept="gender")
    setup = next(cell for cell in node.cells if "setup" in cell.metadata.get("tags", []))
    tree = ast.parse("\n".join(cell.source for cell in node.cells if cell.cell_type == "code"))
    imports = [line for line in ast.parse(setup.source).body if isinstance(line, ast.Import | ast.ImportFrom)]
    exec(ast.unparse(ast.Module(imports, [])), known)
    made, asked = set(), []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("store.make", "store.need"):
            try:
                recipe = eval(ast.unparse(call.args[0]), known)
            except NameError:
                continue  # of something that only the running notebook knows
            if call.func.attr == "make":
                made.add(recipe.key)
                asked += recipe.needs.values()
            else:
                asked.append(recipe)
    asked = [recipe for recipe in asked if recipe.key not in made and recipe.name not in ("codes", "detection")]
    of = {recipe.by.split()[-1] for recipe in asked if recipe.by}
    named = {name[:2] for name in report.needed(node, [text.stem for text in pairs.texts(report.NOTEBOOKS)])}
    assert of <= named | {path.stem[:2]}, f"{path.stem} needs {of - named}"


def test_two_notebooks_share_one_line_of_a_terminal(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "61")
    said = []

    class Screen:
        def isatty(self):
            return True

        def write(self, text):
            said.append(text)

        def flush(self):
            pass

    here = folder({"01_a": ("nothing", 0), "02_b": ("nothing", 0)})
    terminal = progress.Terminal(Screen())
    first, second = (progress.Line(terminal, path.stem, pairs.read(path)) for path in pairs.texts(here))
    first.cell(pairs.read(here / "01_a.py").cells[0], 0)
    second.write("\rtraining:  50%|#####     | 1/2 [00:01<00:01]" + "x" * 99)
    assert said[-2:] == ["\r\x1b[2K" + "01_a  1/4  01 · Does it wait  02_b  training:  50% 1/2 [00:0", ""]
    first.end("done", "2.0 s")
    assert "".join(said).split("\r\x1b[2K")[-2] == "01_a  done  4 cells  2.0 s\n"
    assert "".join(said).split("\r\x1b[2K")[-1].startswith("02_b  training")


@pytest.mark.parametrize(
    "device, cores, gigabytes, right",
    [("cpu", 2, 20, 2), ("cpu", 64, 99, 2), ("cpu", 1, 20, 1), ("cpu", 8, 4, 1), ("cpu", 8, 1, 1), ("cuda", 8, 99, 1)],
)
def test_as_many_at_a_time_as_cores_and_memory_allow(monkeypatch, device, cores, gigabytes, right):
    monkeypatch.setattr(report, "_cores", lambda: cores)
    monkeypatch.setattr(report.psutil, "virtual_memory", lambda: type("Free", (), {"available": gigabytes << 30}))
    assert report.jobs_for(device) == right
