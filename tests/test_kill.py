"""A run that is killed, whenever that is, leaves nothing half-written, and the next one makes the same bytes."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import interruptible
import nbformat
import numpy as np
import pytest
import torch

from whisper_sae import cache, profiles
from whisper_sae.sae import architectures, training

SCRIPT = Path(__file__).with_name("interruptible.py")
LONG = {
    "activations": dict(voices=6, clips=40),
    "dictionary": dict(voices=3, clips=10),
    "index": dict(voices=6, clips=40),
}
NOTEBOOK = """
# %% [markdown]
# # {number} · How do {number} sums of random numbers vary?
#
# **You will** see a table.
# **You need** nothing from the other notebooks.

# %% tags=["parameters"]
profile = "demo"
seed = 0

# %%
import numpy as np, pandas as pd
from whisper_sae.report import results
sums = pd.DataFrame({{"sum": np.random.default_rng(seed).normal(size=(int("{number}"), 1000)).sum(axis=1)}})
sums

# %%
results.save("{number}_sums", profile, f"The largest sum is {{sums['sum'].max():.2f}}.", {{"sums": sums}})
"""
SHORT = {"activations": dict(voices=1, clips=4), "dictionary": dict(voices=3, clips=2)}
STEPS = 1500  # of a long training: fifteen checkpoints


def prepare(recipe: cache.Recipe) -> None:
    """Make all that a result is made from."""
    for need in recipe.needs.values():
        prepare(need)
        cache.make(need)


def start(folder: Path, *arguments) -> subprocess.Popen:
    """A process that is about to make something."""
    with open(folder / "stderr", "w") as log:
        child = subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, arguments)], stdout=subprocess.PIPE, stderr=log, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert child.stdout.readline() == "ready\n", (folder / "stderr").read_text()
    return child


class Job:
    """One result that is made by processes that get killed, and the same one made undisturbed."""

    def __init__(self, what, folder, profile: profiles.Profile, monkeypatch):
        self.what, self.folder, self.monkeypatch = what, folder, monkeypatch
        self.roots = 0
        fields = {name: getattr(profile, name) for name in profiles.FIELDS}
        lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]  # JSON of these is TOML
        self.toml = folder / "profile.toml"
        self.toml.write_text("\n".join(lines), encoding="utf-8")
        self.run = profiles.choose(str(self.toml))
        self.fresh()
        prepare(self.recipe)
        self.upstream = cache.root()
        self.fresh()
        self.right = self.begin_right()
        self.seconds = self.right.manifest["seconds"]
        self.fresh()

    @property
    def recipe(self) -> cache.Recipe:
        return interruptible.recipe_of(self.what, self.run)

    def fresh(self) -> None:
        """A data folder in which only what is needed has been made."""
        root = self.folder / f"data{self.roots}"
        if self.roots:
            shutil.copytree(self.upstream, root)
        self.monkeypatch.setenv("WHISPER_SAE_DATA", str(root))
        self.roots += 1

    def begin_right(self) -> cache.Step:
        """Made undisturbed: activations in this process, with one thread as the others, which saves a start."""
        if self.what != "activations":
            return self.finish()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return cache.make(self.recipe)
        finally:
            torch.set_num_threads(threads)

    def finish(self) -> cache.Step:
        """Made undisturbed, in a process like those that get killed: sums of long rows depend on the threads it has."""
        assert self.start().wait() == 0, (self.folder / "stderr").read_text()
        return cache.need(self.recipe)

    def start(self, *arguments) -> subprocess.Popen:
        return start(self.folder, self.what, self.toml, *arguments)

    def kill_after(self, seconds: float) -> None:
        child = self.start()
        time.sleep(seconds)
        child.kill()
        assert child.wait() in (0, -9), (self.folder / "stderr").read_text()

    def is_made(self) -> bool:
        return (cache.root() / "steps" / self.recipe.name / self.recipe.key).exists()

    def at_work(self) -> bool:
        """Whether something was begun that is not finished."""
        steps = cache.root() / "steps"
        return any(any(work.iterdir()) for work in steps.glob(f"{self.recipe.name}/.*.work"))

    def check_names(self) -> None:
        """Whatever stands under a result's own name is whole."""
        found = [path for path in (cache.root() / "steps").glob("*/*") if not path.name.startswith(".")]
        assert len(found) >= len(self.recipe.needs)
        for path in found:
            manifest = json.loads((path / "manifest.json").read_text())
            assert manifest["key"] == path.name
            cache.Step(path, manifest, "").verify()
            files = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
            assert files == {*manifest["files"], "manifest.json"}

    def check_same(self, step: cache.Step) -> None:
        assert step.path != self.right.path
        step.verify()
        assert step.manifest["files"] == self.right.manifest["files"]
        assert step.facts == self.right.facts


class Reports:
    """The pages of three notebooks that are run by processes that get killed, and the same pages made undisturbed."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.monkeypatch, self.roots = folder, monkeypatch, 0
        for number in ("01", "02", "03"):
            (folder / f"{number}_sums.py").write_text(NOTEBOOK.format(number=number).lstrip(), encoding="utf-8")
        self.seconds = 0.0
        self.fresh()
        self.right = self.finish()
        self.fresh()

    @property
    def where(self) -> Path:
        return self.folder / f"reports{self.roots}" / "demo"

    def fresh(self) -> None:
        self.roots += 1
        self.monkeypatch.setenv("WHISPER_SAE_REPORTS", str(self.where.parent))

    def start(self) -> subprocess.Popen:
        return start(self.folder, "reports", self.folder)

    def finish(self) -> dict[str, str]:
        child, begun = self.start(), time.monotonic()
        assert child.wait() == 0, (self.folder / "stderr").read_text()
        self.seconds = self.seconds or time.monotonic() - begun
        return self.files()

    kill_after = Job.kill_after

    def files(self) -> dict[str, str]:
        """What stands under its own name, without what legitimately differs: dates, durations, and message ids."""
        found = {}
        for path in sorted(self.where.rglob("*")):
            if path.is_dir() or path.name.startswith("."):
                continue
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".ipynb":
                text = "\n".join(f"{cell.source}\n{cell.get('outputs')}" for cell in nbformat.reads(text, 4).cells)
            text = re.sub(r"\d+(\.\d+)? s\b|\d{4}-\d\d-\d\d.\d\d:\d\d(:\d\d)?", "", text)
            found[path.relative_to(self.where).as_posix()] = re.sub(r'"(seconds|written)": [\d.]+', "", text)
        return found

    def is_made(self) -> bool:
        found = self.files()
        return all(f'href="0{number}_sums.html"' in found.get("index.html", "") for number in (1, 2, 3))

    def at_work(self) -> bool:
        return self.where.exists() and not self.is_made()

    def check_names(self) -> None:
        """Whatever stands under its own name is whole: it ends, or is the table and the answer that it will be."""
        for name, text in self.files().items() if self.where.exists() else ():
            assert name in self.right
            if name.endswith(".html"):
                assert text.rstrip().endswith("</html>"), name
            elif name.endswith(".json"):
                json.loads((self.where / name).read_text(encoding="utf-8"))
            else:
                assert text == self.right[name], name

    def check_same(self, found: dict[str, str]) -> None:
        assert found == self.right


@pytest.fixture
def reports(tmp_path, monkeypatch):
    return Reports(tmp_path, monkeypatch)


@pytest.fixture
def job(small_whisper, corpus, run_for, tmp_path, monkeypatch):
    def begin(what: str, size: dict, tokens: int) -> Job:
        return Job(what, tmp_path, run_for(small_whisper, corpus(**size), tokens=tokens), monkeypatch)

    return begin


def kill_again_and_again(job: Job, kills: int, seed: int) -> None:
    """Kill at random moments, each run going on from what the last one left, until so many kills hit their mark."""
    rng = np.random.default_rng(seed)
    hits = resumed = 0
    for _attempt in range(4 * kills):
        if hits == kills:
            break
        resumed += job.at_work()
        job.kill_after(rng.uniform(0.1, 0.6) * job.seconds)
        job.check_names()
        if job.at_work():
            hits += 1
        elif job.is_made():  # the kill came too late
            job.check_same(job.finish())
            job.fresh()
    assert hits == kills, f"only {hits} kills found the run at work"
    assert resumed, "no run went on from where another was killed"
    job.check_same(job.finish())
    job.check_names()


@pytest.mark.parametrize(
    ("what", "when", "nth"),
    [("activations", "before", 3), pytest.param("dictionary", "after", 3, marks=pytest.mark.slow)],
)
def test_killed_half_way(job, what, when, nth):
    """Around a shard that gets its name; checkpoints and all other moments are slow tests."""
    short = job(what, SHORT[what], 256 * 250)
    assert short.start(when, nth).wait() == -9, (short.folder / "stderr").read_text()
    short.check_names()
    assert short.at_work() and not short.is_made()
    short.check_same(short.finish())
    short.check_names()


@pytest.mark.slow
@pytest.mark.parametrize(("what", "kills"), [("activations", 30), ("dictionary", 30), ("index", 20)])
def test_killed_at_many_moments(job, what, kills):
    kill_again_and_again(job(what, LONG[what], 256 * STEPS), kills=kills, seed=1)


@pytest.mark.slow
def test_reports_killed_at_many_moments(reports):
    kill_again_and_again(reports, kills=20, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["activations", "dictionary"])
def test_killed_around_every_rename(job, what, when):
    """The moments that chance seldom hits: when a shard, a checkpoint or the result gets its name."""
    short = job(what, SHORT[what], 256 * 150)
    for nth in range(1, 20):
        child = short.start(when, nth)
        ended = child.wait()
        assert ended in (0, -9), (short.folder / "stderr").read_text()
        short.check_names()
        short.check_same(short.finish())
        short.fresh()
        if ended == 0:  # so many renames there are not
            break
    assert ended == 0
    assert nth > 3


@pytest.mark.parametrize("variant", architectures.VARIANTS)
@pytest.mark.parametrize("stop", [1, 37, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (10, 59))])
def test_training_goes_on_from_a_checkpoint_bit_for_bit(tmp_path, variant, stop):
    data = torch.randn(4_000, 16, generator=torch.Generator().manual_seed(0))

    def batches(start):
        return (data[step * 64 % 3_900 :][:64] for step in range(start, 60))

    def begin(checkpoint):
        coder = architectures.create(variant, 16, 64, 4, seed=0)
        coder.start_on(data[:256])
        coder.b_enc.data[:8] = -3.0  # these are dead from the first
        rows = training.train(
            coder, batches, steps=60, learning_rate=1e-2, dead_tokens=256, checkpoint=checkpoint, every=10,
            resample_tokens=64 * 17,
        )  # fmt: skip
        return coder, rows

    whole, rows = begin(None)
    right = list(rows)
    assert any(row["auxiliary"] > 0 for row in right), "latents die, so that all of the state matters"
    assert any(row["resampled"] > 0 for row in right)
    _, rows = begin(tmp_path / "state.pt")
    seen = [next(rows) for _ in range(stop)]
    rows.close()
    assert seen == right[:stop]
    assert (tmp_path / "state.pt").exists() == (stop >= 10)
    again, rows = begin(tmp_path / "state.pt")
    assert list(rows) == right
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not list(tmp_path.glob("*.part"))
