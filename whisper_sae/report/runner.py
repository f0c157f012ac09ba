"""Runs the notebooks of a profile and publishes them as pages: `reports/<profile>/index.html`.

The `.py` halves are what is executed, so a stale `.ipynb` is never what ran. A notebook that fails is
published too, with its error, and the others go on. What is known about each page is kept in `run.json`, so
that running one notebook again leaves the pages and the index entries of the others as they were.

Several notebooks may run at a time, each in a process (a kernel) of its own and after those that its line "You need"
names. All pages are written by the one process that started them.
"""

import ast
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import filelock
import nbformat
import papermill
import psutil
from nbconvert.filters import strip_ansi
from papermill.engines import NBClientEngine, papermill_engines

from whisper_sae import private_paths, profiles, progress
from whisper_sae.private_paths import PROJECT
from whisper_sae.report import forkserver, pages, pairing, provenance, readable, results

NOTEBOOKS = PROJECT / "notebooks"
EVERY = ("profile", "seed")
MOST_JOBS = 2
"""Notebooks that run at a time unless more are asked for: only two at a time do not need each other for long."""
MEMORY_OF_ONE = 3 << 30
"""Bytes that should be free for each notebook that runs beside others."""


@dataclass(frozen=True)
class Plan:
    """A checked request: these notebooks, with this profile and these parameters."""

    given: str
    """The profile as a notebook is told it: a name, or the absolute path of a .toml file."""
    profile: profiles.Profile
    folder: Path
    chosen: tuple[str, ...]
    parameters: dict[str, dict]
    """For each chosen notebook, what papermill hands it."""

    @property
    def where(self) -> Path:
        """The folder of the pages."""
        return results.folder(self.profile.name).absolute()


def plan(profile="demo", numbers=(), seed=0, given=(), folder=None) -> Plan:
    """Check a request before anything runs.

    `numbers` choose notebooks by number or name, none of them means all; `given` are (name, value) pairs for
    parameters beyond profile and seed. Raises ValueError or FileNotFoundError, in one line, when something
    does not exist, and names what does.
    """
    chosen_profile = profiles.choose(profile)
    told = str(Path(profile).expanduser().resolve()) if _is_file(profile) else profile
    folder = Path(folder or NOTEBOOKS)
    texts = {text.stem: text for text in pairing.texts(folder)}
    if not texts:
        raise ValueError(f"there is no notebook NN_name.py in {folder}")
    chosen = _choose(texts, numbers)
    parameters = {name: {"profile": told, "seed": seed} for name in chosen}
    known = {name: _parameters(texts[name]) for name in chosen}
    for name in chosen:
        for parameter in EVERY:
            if parameter not in known[name]:
                raise ValueError(f"{name} has no parameter {parameter!r} in its parameters cell")
    for parameter, value in given:
        if parameter in EVERY:
            raise ValueError(f"-p {parameter}: give it as {'--seed' if parameter == 'seed' else 'the profile'}")
        takers = [name for name in chosen if parameter in known[name]]
        if not takers:
            right = sorted({p for name in chosen for p in known[name]} - set(EVERY))
            raise ValueError(f"-p {parameter}: no such parameter; there is {', '.join(right) or 'none'}")
        for name in takers:
            parameters[name][parameter] = _like(known[name][parameter], parameter, value)
    return Plan(told, chosen_profile, folder, tuple(chosen), parameters)


def run(plan: Plan, terminal=None, jobs: int = 0) -> dict[str, dict]:
    """Run a plan and publish it; returns what `run.json` says of each notebook that ran.

    `terminal` is a text stream for progress (default: stderr); `jobs` is how many notebooks run at a time (default:
    see `jobs_for`).
    """
    screen = progress.Terminal(terminal or sys.stderr)
    made = provenance.now()
    to_come = {name: pages.title(pairing.read(plan.folder / f"{name}.py")) or name for name in plan.chosen}
    ran = {}
    linked = dict.fromkeys(_titles(plan), _titles(plan))
    try:
        with closing(_run_all(plan, jobs or jobs_for(plan.profile.device), screen)) as rows:
            for name, row in rows:
                ran[name] = row | made
                try:
                    _remember(plan, made, {name: ran[name]})
                    linked[name] = _titles(plan, to_come)
                    _publish(plan, name, linked[name])
                    _publish_index(plan)
                except OSError as error:  # the other notebooks need not fail for it
                    ran[name] |= {"status": "failed", "error": _unwritten(plan, error)}
    finally:
        after = _titles(plan)
        for name in after:
            if linked.get(name) != after:  # other pages are there now than it was thought to link to
                with suppress(OSError):
                    _publish(plan, name, after)
    return {name: ran[name] for name in plan.chosen if name in ran}


def jobs_for(device: str) -> int:
    """How many notebooks to run at a time: one a core that this process may use, if memory allows, and at most two.

    On a GPU they would share its memory, and one runs at a time.
    """
    if _on_gpu(device):
        return 1
    free = psutil.virtual_memory().available // MEMORY_OF_ONE
    return max(1, min(MOST_JOBS, _cores(), free))


def needed(node, names) -> set[str]:
    """Which of the notebooks `names` have to run before a notebook, as its line "You need" says."""
    text = "\n".join(cell.source for cell in node.cells if cell.cell_type == "markdown")
    line = re.search(r"\*\*You need\*\*(.*?)(?:\n\s*\n|\*\*|\Z)", text, re.S)
    numbers = set()
    for several in re.findall(r"\bnotebooks? (\d+(?:(?:, | and | to )\d+)*)", line[1] if line else ""):
        for first, last in re.findall(r"(\d+)(?: to (\d+))?", several):
            numbers.update(range(int(first), int(last or first) + 1))
    return {name for name in names if int(name[:2]) in numbers}


def record(plan: Plan) -> list[Path]:
    """Put the checked outputs of the latest run into the `.ipynb` halves; returns the files written."""
    rows = _remembered(plan).get("notebooks", {})
    done = [name for name in plan.chosen if rows.get(name, {}).get("status") == "done"]
    executed = {name: node for name in done if (node := _read(plan, name))}
    return pairing.record(plan.folder, executed)


# --- choosing


def _is_file(profile: str) -> bool:
    return str(profile).endswith(".toml") and Path(profile).expanduser().is_file()


def _choose(texts: dict, numbers) -> list[str]:
    chosen = set()
    for wanted in numbers:
        wanted = str(wanted).removesuffix(".py")
        number = f"{int(wanted):02d}_" if wanted.isdecimal() else None
        found = [name for name in texts if name == wanted or (number and name.startswith(number))]
        if not found:
            raise ValueError(f"there is no notebook {wanted!r}; there is {', '.join(texts)}")
        chosen.update(found)
    return [name for name in texts if name in chosen or not numbers]


def _parameters(text: Path) -> dict:
    """Name and default of each parameter of a notebook."""
    found = papermill.inspect_notebook(pairing.read(text))
    defaults = {}
    for name, parameter in found.items():
        try:
            defaults[name] = ast.literal_eval(parameter["default"])
        except (ValueError, SyntaxError):
            defaults[name] = parameter["default"]
    return defaults


def _like(default, name: str, text: str):
    """`text` as a value of the kind that the default is of."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if default is not None and type(value) is not type(default):
        raise ValueError(f"-p {name}: expected {type(default).__name__} like {default!r}, got {text!r}")
    return value


# --- running


class _Engine(NBClientEngine):
    """Executes as papermill does, and lets the notebook be had with all its outputs even when its kernel dies.

    So it need not be written before and after every cell, which took longer than all else that papermill does.
    """

    NAME = "whisper_sae"

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, managed: list, **options):
        managed.append(nb_man)
        return super().execute_managed_notebook(nb_man, kernel_name, **options)


papermill_engines.register(_Engine.NAME, _Engine)


def _run_all(plan: Plan, jobs: int, screen: progress.Terminal) -> Iterator[tuple[str, dict]]:
    """Run notebooks, `jobs` at a time, as their needs allow: LONGEST first, else in order of number. Yields (name, row)
    as each ends.

    One that needs another waits until that has ended, well or not: it says itself what it misses. When this is
    closed before its end (Ctrl-C), the kernels that run are killed.
    """
    needs = {name: needed(pairing.read(plan.folder / f"{name}.py"), plan.chosen) for name in plan.chosen}
    left, running = list(plan.chosen), {}
    threads = max(1, _cores() // jobs) if jobs > 1 else 0
    with _environment(threads), _forked_kernels(plan), ThreadPoolExecutor(jobs) as pool:
        try:
            while left or running:
                for name in _ready(left, needs, running.values())[: jobs - len(running)]:
                    left.remove(name)
                    running[pool.submit(_run_one, plan, name, screen)] = name
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
        finally:
            _stop(running)


LONGEST = "05"
"""The number of the notebook that takes longest on a corpus of hours: it starts as soon as its needs allow."""


def _ready(left, needs: dict[str, set], running) -> list[str]:
    """Those of the notebooks `left` that nothing they need is still to come for."""
    ahead = {*left, *running}
    ready = [name for name in left if not (needs[name] - {name}) & ahead]
    return sorted(ready, key=lambda name: not name.startswith(LONGEST))


def _stop(running: dict[Future, str]) -> None:
    """Kill the kernels of notebooks that run; one that is just being started is met in a later round."""
    while wait(running, timeout=0).not_done:
        forkserver.KernelManager.kill_all()
        wait(running, timeout=0.2)


def _run_one(plan: Plan, name: str, screen: progress.Terminal) -> dict:
    """Execute one notebook into `executed/`, and say what came of it."""
    node = pairing.read(plan.folder / f"{name}.py")
    title = pages.title(node) or name
    found, managed = _finding(plan, name), []
    line = progress.Line(screen, name, node)
    start = time.monotonic()
    error = ""
    try:
        papermill.execute_notebook(
            node,
            None,
            engine_name=_Engine.NAME,
            managed=managed,
            coalesce_streams=True,
            parameters=plan.parameters[name],
            kernel_name="python3",
            language="python",
            progress_bar=False,
            stderr_file=line,
            on_cell_start=line.cell,
            kernel_manager_class=forkserver.KernelManager,
        )
    except papermill.PapermillExecutionError as failure:
        error = f"{failure.ename}: {strip_ansi(failure.evalue)}"
    except Exception as failure:  # the kernel died or never started
        error = f"{type(failure).__name__}: {strip_ansi(str(failure))}"
    node = managed[0].nb if managed else node
    seconds = round(time.monotonic() - start, 2)
    error = (error.strip().splitlines() or [""])[0]
    try:
        results.write(_executed(plan, name), _hidden(plan, nbformat.writes(node)))
    except OSError as failure:
        error = error or _unwritten(plan, failure)
    line.end("failed" if error else "done", pages.duration(seconds))
    finding = _finding(plan, name)
    fresh = finding if not error and finding != found else {}
    return {
        "status": "failed" if error else "done",
        "title": title,
        "headline": fresh.get("headline", ""),
        "tables": fresh.get("tables", []),
        "steps": fresh.get("steps", {}),
        "other_versions": fresh.get("other_versions", []),
        "error": _hidden(plan, error),
        "seconds": seconds,
        "seed": plan.parameters[name]["seed"],
        "parameters": plan.parameters[name] | {"profile": _hidden(plan, plan.given)},
    }


def _executed(plan: Plan, name: str) -> Path:
    """Where the executed notebook is kept, with all its outputs."""
    return plan.where / "executed" / f"{name}.ipynb"


def _read(plan: Plan, name: str):
    """The executed notebook; None if there is none, or none that can be read."""
    try:
        return nbformat.read(_executed(plan, name), as_version=4)
    except Exception:  # what a damaged notebook raises depends on where it is damaged
        return None


def _hidden(plan: Plan, text: str) -> str:
    """Text without the places of this machine: reports are given to others."""
    run = plan.profile
    return private_paths.hidden(text, (plan.given, run.model, *run.corpus, run.text_encoder))


def _unwritten(plan: Plan, error: OSError) -> str:
    where = error.filename or plan.where
    return f"OSError: {where}: {error.strerror or error}; WHISPER_SAE_REPORTS names another folder for reports"


def _finding(plan: Plan, name: str) -> dict:
    """What the notebook has saved, with the time of writing: an earlier run's answer is not this one's."""
    path = plan.where / "findings" / f"{name}.json"
    finding = results.load(plan.profile.name, name) or {}
    return finding | {"written": path.stat().st_mtime_ns} if finding else {}


@contextmanager
def _forked_kernels(plan: Plan):
    """Kernels are forks of one process that has imported everything, where that is safe."""
    if sys.platform == "linux" and not _on_gpu(plan.profile.device):
        forkserver.KernelManager.server = forkserver.ForkServer(plan.folder)
    try:
        yield
    finally:
        server, forkserver.KernelManager.server = forkserver.KernelManager.server, None
        if server:
            server.close()


def _on_gpu(device: str) -> bool:
    """Whether a profile's device is, or with `auto` may be, anything but a processor."""
    return device != "cpu" and (device != "auto" or provenance.may_have_gpu())


def _cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _environment(threads: int):
    """Kernels find `whisper_sae` from any folder, installed or not, and start without debugger's remarks.

    Each computes on as many threads, unless OMP_NUM_THREADS says otherwise; 0 leaves it to the libraries.
    """
    before = dict(os.environ)
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    os.environ.setdefault("TQDM_MININTERVAL", "0.5")  # each state of a progress bar is a message
    if threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of torch, BLAS, scikit-learn and our kernels
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that waits leaves its core to another notebook
        os.environ.setdefault("WHISPER_SAE_CORES", str(_cores()))  # for long passes: devices.on_idle_cores
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# --- what is known of a run


ROW = {
    "status": str, "title": str, "headline": str, "tables": list, "steps": dict, "error": str, "seconds": (int, float),
    "seed": int, "parameters": dict, "versions": dict,
}  # fmt: skip
"""What `run.json` has of each notebook; a row without it is as good as none."""


def _remembered(plan: Plan) -> dict:
    run = results.read(plan.where / "run.json")
    run = run if isinstance(run, dict) else {}
    rows = run.get("notebooks") if isinstance(run.get("notebooks"), dict) else {}
    whole = {
        name: row
        for name, row in rows.items()
        if isinstance(row, dict) and all(isinstance(row.get(field), kind) for field, kind in ROW.items())
    }
    return run | {"notebooks": whole}


def _remember(plan: Plan, made: dict, rows: dict) -> None:
    """Write `run.json` with `rows` renewed and all others kept, those of another run at the same time too."""
    plan.where.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(plan.where / ".run.lock"):
        run = {"profile": plan.profile.name, "seed": next(iter(rows.values()))["seed"], **made}
        run["notebooks"] = dict(sorted((_remembered(plan)["notebooks"] | rows).items()))
        results.write(plan.where / "run.json", json.dumps(run, indent=1) + "\n")


# --- publishing


def _about(plan: Plan) -> dict:
    return {"profile": plan.profile.name, "about": plan.profile.about, "banner": plan.profile.banner}


def _titles(plan: Plan, to_come: dict[str, str] | None = None) -> dict[str, str]:
    """The titles of the notebooks that have a page, or will have one, in order."""
    rows = _remembered(plan).get("notebooks", {})
    there = {name: row["title"] for name, row in rows.items() if _executed(plan, name).is_file()} | (to_come or {})
    return {text.stem: there[text.stem] for text in pairing.texts(plan.folder) if text.stem in there}


def _publish(plan: Plan, name: str, titles: dict[str, str]) -> None:
    """Write the page of an executed notebook, with links to those of `titles`."""
    node, row = _read(plan, name), _remembered(plan)["notebooks"].get(name)
    if node is None or row is None:
        return
    row |= {"name": name}
    results.write(plan.where / f"{name}.html", pages.page(readable.prepared(node), row, _about(plan), titles))


def _publish_index(plan: Plan) -> None:
    run = _remembered(plan)
    existing = _titles(plan)
    rows = []
    for text in pairing.texts(plan.folder):
        row = {"name": text.stem, "number": text.stem[:2], "status": "not run", "title": text.stem}
        if text.stem in existing and (node := _read(plan, text.stem)):
            row |= run["notebooks"][text.stem] | {"href": f"{text.stem}.html"}
            row["thumbnail"], row["thumbnail_alt"] = pages.thumbnail(node)
        else:
            row["title"] = pages.title(pairing.read(text)) or text.stem
        rows.append(row)
    total = {"seconds": sum(run["notebooks"][name]["seconds"] for name in existing)}
    results.write(plan.where / "index.html", pages.index(rows, run | _about(plan) | total))
