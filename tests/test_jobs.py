"""Notebooks that run side by side: none before what it needs, the same pages as one by one, and Ctrl-C ends all."""

import ast
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from whisper_sae import profiles, progress
from whisper_sae.experiments import evaluation_clips
from whisper_sae.report import pairing, results, runner

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
    monkeypatch.setattr(runner, "_cores", lambda: 6)
    needs = {"01_a": ("nothing", 60), "02_b": ("the results of notebook 1", 0), "03_c": ("nothing", 0)}
    here = folder(needs, "03 ends", last="1 / 0")
    rows = runner.run(runner.plan(folder=here), jobs=2)
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
        runner.run(runner.plan(folder=here), jobs=jobs)
        text = "".join((here / "reports" / "demo" / f"0{n}_x.html").read_text() for n in (1, 2))
        pages.append(re.sub(r"\d+(\.\d)? s\b|\d{4}-\d\d-\d\d.\d\d:\d\d:\d\d", "", text))
    assert pages[0] == pages[1]


INTERRUPTED = """
import signal
from whisper_sae import __main__
from whisper_sae.report import runner
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore Ctrl-C
signal.signal(signal.SIGTERM, __main__._terminate)
runner.NOTEBOOKS = runner.Path({!r})
raise SystemExit(__main__.main(["--jobs", "2"]))
"""


@pytest.mark.parametrize(
    ("signal_", "code", "ended"),
    [pytest.param("SIGINT", 130, "interrupted", marks=pytest.mark.slow), ("SIGTERM", 143, "terminated")],
)
def test_a_signal_kills_what_runs_and_keeps_what_is_done(folder, signal_, code, ended):
    here = folder(
        {"01_a": ("nothing", 0), "02_b": ("nothing", 600), "03_c": ("notebook 1", 600), "04_d": ("notebook 2", 0)}
    )
    command = [sys.executable, "-c", INTERRUPTED.format(str(here))]
    child = subprocess.Popen(command, cwd=runner.PROJECT, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        time.sleep(0.1)
        begun = re.findall(r"begins (\d+)", (here / "log").read_text() if (here / "log").exists() else "")
        if len(begun) == 3:
            break
    child.send_signal(getattr(signal, signal_))
    _, said = child.communicate(timeout=120)
    assert child.returncode == code and f"whisper_sae: {ended}; what was finished is published" in said
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
    node = pairing.read(folder({"07_x": (said, 0)}) / "07_x.py")
    assert "".join(sorted(name[1] for name in runner.needed(node, names))) == right


class _Everything(dict):
    """A namespace in which what a cell made is unknown, so that an expression which uses it is left out."""

    def __missing__(self, name):
        raise NameError(name)


@pytest.mark.parametrize("path", pairing.texts(runner.NOTEBOOKS), ids=lambda path: path.stem)
def test_notebooks_say_which_others_they_need(path):
    """Every stored result that a cell asks for and no cell of the same notebook makes is of a notebook it names.

    Codes and what they detect are left out: whoever asks for them makes them.
    """
    node = pairing.read(path)
    run = profiles.choose("demo")
    known = _Everything(__builtins__=__builtins__, run=run, seed=0, site=run.focus, concept="gender")
    sites = evaluation_clips.sites_of(run)
    known["acts"] = SimpleNamespace(facts={"sites": sites})  # notebook 5 loops over them
    setup = next(cell for cell in node.cells if "setup" in cell.metadata.get("tags", []))
    tree = ast.parse("\n".join(cell.source for cell in node.cells if cell.cell_type == "code"))
    imports = [line for line in ast.parse(setup.source).body if isinstance(line, ast.Import | ast.ImportFrom)]
    exec(ast.unparse(ast.Module(imports, [])), known)
    made, asked = set(), []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("store.make", "store.need"):
            try:
                recipes = {
                    recipe.key: recipe
                    for each in sites
                    if (recipe := eval(ast.unparse(call.args[0]), known | {"each": each}))
                }
            except NameError:
                continue  # of something that only the running notebook knows
            if call.func.attr == "make":
                made |= set(recipes)
                asked += [need for recipe in recipes.values() for need in recipe.needs.values()]
            else:
                asked += recipes.values()
    asked = [recipe for recipe in asked if recipe.key not in made and recipe.name not in ("codes", "detection")]
    of = {recipe.by.split()[-1] for recipe in asked if recipe.by}
    named = {name[:2] for name in runner.needed(node, [text.stem for text in pairing.texts(runner.NOTEBOOKS)])}
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
    first, second = (progress.Line(terminal, path.stem, pairing.read(path)) for path in pairing.texts(here))
    first.cell(pairing.read(here / "01_a.py").cells[0], 0)
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
    monkeypatch.setattr(runner, "_cores", lambda: cores)
    monkeypatch.setattr(runner.psutil, "virtual_memory", lambda: type("Free", (), {"available": gigabytes << 30}))
    assert runner.jobs_for(device) == right


@pytest.mark.parametrize("seconds", [0.3, 1.0])
@pytest.mark.parametrize(("signal_", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_importing_ends_in_one_line(seconds, signal_, code):
    child = subprocess.Popen(
        [sys.executable, "-m", "whisper_sae", "nowhere"], cwd=runner.PROJECT, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    time.sleep(seconds)
    child.send_signal(getattr(signal, signal_))
    _, said = child.communicate(timeout=60)
    assert child.returncode in (code, 2, -getattr(signal, signal_)), said  # 2: it was faster; -: Python had not begun
    assert "Traceback" not in said or "whisper_sae/" not in said, said


DAMAGE = {
    "executed/01_a.ipynb": [b"", b'{"cells": [', b"[]", b"\xff\xfe\0"],
    "findings/01_a.json": [b"", b'{"headline', b"[1]", b"null"],
    "run.json": [b"", b"[]", b"null", b'{"notebooks": []}', b'{"notebooks": {"01_a": {}}}', "{}".encode("utf-16"),
                 b"[" * 100_000],
}  # fmt: skip


def test_what_is_damaged_in_the_reports_counts_as_not_there(folder):
    here = folder({"01_a": ("nothing", 0), "02_b": ("nothing", 0)})
    plan = runner.plan(folder=here)
    rows = runner.run(plan, jobs=2)
    made = {name: rows["02_b"][name] for name in ("commit", "dirty", "date", "device", "versions")}
    for name, contents in DAMAGE.items():
        path = here / "reports" / "demo" / name
        before = path.read_bytes() if path.exists() else None
        for content in contents:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            runner._finding(plan, "01_a")
            runner._remember(plan, made, {"02_b": rows["02_b"]})
            for one in rows:
                runner._publish(plan, one, runner._titles(plan))
            runner._publish_index(plan)
            assert runner._remembered(plan)["notebooks"]["02_b"] == rows["02_b"]
        path.unlink() if before is None else path.write_bytes(before)
        runner._remember(plan, made, rows)


def test_two_runs_of_one_profile_lose_no_row(folder):
    plan = runner.plan(folder=folder({"01_a": ("nothing", 0)}))
    made = {"commit": "", "dirty": False, "date": "", "device": "", "versions": {}}
    row = dict.fromkeys(runner.ROW) | made
    row |= {name: (kind[0] if isinstance(kind, tuple) else kind)() for name, kind in runner.ROW.items()}
    names = [f"{number:02d}_x" for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: runner._remember(plan, made, {name: row}), names))
    assert list(runner._remembered(plan)["notebooks"]) == names


def test_a_page_that_cannot_be_written_costs_a_line_and_not_the_run(folder, monkeypatch):
    here, write = folder({f"0{n}_x": ("nothing", 0) for n in (1, 2)}), results.write

    def full(path, text):
        if path.name in ("01_x.html", "01_x.ipynb"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, text)

    monkeypatch.setattr(results, "write", full)
    rows = runner.run(runner.plan(folder=here), jobs=1)
    assert [row["status"] for row in rows.values()] == ["failed", "done"]
    assert "No space left on device" in rows["01_x"]["error"] and "WHISPER_SAE_REPORTS" in rows["01_x"]["error"]
    assert (here / "reports" / "demo" / "02_x.html").exists()


def test_the_longest_notebook_starts_as_soon_as_what_it_needs_has_ended():
    names = ["03_clusters", "04_voices", "05_patching", "06_meaning"]
    needs = {name: {"02_training"} for name in names}
    assert runner._ready(names, needs, ["00_instrument"]) == ["05_patching", "03_clusters", "04_voices", "06_meaning"]
    assert runner._ready(names, needs, ["02_training"]) == []
    assert any(path.name.startswith(runner.LONGEST) for path in runner.NOTEBOOKS.glob("*.py"))
