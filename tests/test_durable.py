"""What is written is on the disk before it has its name, and what has lost bytes is never used."""

import os
import threading
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch

from whisper_sae import atomic, cache, shards
from whisper_sae.activations import store
from whisper_sae.cache import NotMade, Recipe
from whisper_sae.report import results
from whisper_sae.sae import architectures, training


@pytest.fixture
def done(monkeypatch):
    """What is flushed and renamed, in order: ("flush", name) and ("rename", name)."""
    order, fsync, rename, replace = [], os.fsync, os.rename, os.replace

    def flushed(handle):
        order.append(("flush", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        fsync(handle)

    def renamed(way):
        def call(part, place):
            order.append(("rename", Path(place).name))
            way(part, place)

        return call

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed(rename))
    monkeypatch.setattr(os, "replace", renamed(replace))
    return order


linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc")


@linux
def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_folder_after(tmp_path, done):
    atomic.write(tmp_path / "deep" / "page.html", "text")
    (kind, part), *rest = done
    assert kind == "flush" and part.endswith(".part")
    assert rest == [("rename", "page.html"), ("flush", "deep")]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]


@linux
def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, done):
    (tmp_path / "part" / "in").mkdir(parents=True)
    for name in ("a", "in/b"):
        (tmp_path / "part" / name).write_bytes(b"1")
    atomic.rename(tmp_path / "part", tmp_path / "whole")
    assert set(done[:2]) == {("flush", "b"), ("flush", "in")} and done[0] == ("flush", "b")
    assert done[2:] == [("flush", "a"), ("flush", "part"), ("rename", "whole"), ("flush", tmp_path.name)]


@linux
def test_a_result_is_on_the_disk_before_it_has_its_name(data, done):
    step = cache.make(words())
    at = done.index(("rename", step.key))
    assert {("flush", "words.txt"), ("flush", "manifest.json"), ("flush", f".{step.key}.work")} <= set(done[:at])
    assert done[at + 1] == ("flush", "words")


def test_after_an_error_the_old_file_is_there_and_nothing_beside_it(tmp_path):
    atomic.write(tmp_path / "a", b"old")
    with pytest.raises(RuntimeError), atomic.replacing(tmp_path / "a") as part:
        part.write_bytes(b"half")
        raise RuntimeError
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_what_a_killed_run_has_left_is_removed_when_it_is_old(tmp_path):
    old, new, other = tmp_path / ".a.1.part", tmp_path / ".a.2.part", tmp_path / ".b.1.part"
    for path in (old, new, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (time.time() - 2 * atomic.STALE,) * 2)
    atomic.write(tmp_path / "a", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.2.part", ".b.1.part", "a"]


# ---------------------------------------------------------------------------------------------- results


def words(by="notebook 1") -> Recipe:
    def write(folder):
        (folder / "words.txt").write_text("some words")
        np.save(folder / "numbers.npy", np.arange(5))
        return {"words": 2}

    return Recipe("words", write, {"n": 1}, by=by)


@pytest.mark.parametrize("left", [0, 4, None], ids=["no bytes", "four bytes", "no file"])
@pytest.mark.parametrize("name", ["words.txt", "numbers.npy"])
def test_a_result_that_has_lost_bytes_is_made_again(data, capsys, name, left):
    path = cache.make(words()).path / name
    whole = path.read_bytes()
    path.unlink() if left is None else os.truncate(path, left)
    with pytest.raises(NotMade, match="notebook 1"):
        cache.need(words())
    capsys.readouterr()
    assert cache.make(words()).path / name == path
    assert path.read_bytes() == whole
    assert capsys.readouterr().err.splitlines()[0].startswith(f"{path}: {'no' if left is None else left} bytes, ")


def test_what_other_versions_have_begun_is_begun_anew(data, capsys, monkeypatch):
    def interrupted(folder):
        seen.append(sorted(path.name for path in folder.iterdir()))
        (folder / "half.npy").write_bytes(b"half")
        if len(seen) < 4:
            raise KeyboardInterrupt
        return {}

    seen, recipe = [], Recipe("half", interrupted, {}, by="notebook 1")
    for versions in ({"torch": "1"}, {"torch": "1"}, {"torch": "2"}):
        monkeypatch.setattr(cache, "versions", lambda versions=versions: versions)
        with pytest.raises(KeyboardInterrupt):
            cache.make(recipe)
    assert seen == [["begun.json"], ["begun.json", "half.npy"], ["begun.json"]]
    assert capsys.readouterr().err.count("begun anew") == 1
    assert sorted(cache.make(recipe).manifest["files"]) == ["half.npy"]


def test_what_a_killed_run_was_writing_is_no_part_of_the_result(data):
    def write(folder):
        if not seen:
            seen.append(1)
            (folder / "deep").mkdir()
            for part in (folder / ".a.txt.0123456789ab.part", folder / "deep" / ".b.txt.0123456789ab.part"):
                part.write_text("half")
            raise KeyboardInterrupt
        atomic.write(folder / "a.txt", "whole")

    seen, recipe = [], Recipe("half", write, {}, by="notebook 1")
    with pytest.raises(KeyboardInterrupt):
        cache.make(recipe)
    assert list(cache.make(recipe).manifest["files"]) == ["a.txt"]


def test_who_waits_for_another_process_is_told_so(data, capsys, monkeypatch):
    monkeypatch.setattr(cache, "PATIENCE", 0.1)
    place = cache.where(words())
    place.parent.mkdir(parents=True)
    held = threading.Event()

    def hold():
        with filelock.FileLock(place.with_name(f".{place.name}.lock")):
            held.set()
            time.sleep(0.4)

    threading.Thread(target=hold).start()
    held.wait()
    cache.make(words())
    assert capsys.readouterr().err.startswith("'words' is being made by another process; waiting for it")


# --------------------------------------------------------------------------------------------- checkpoints


def taught(path, steps=12, width=8):
    model = architectures.create("topk", width, 16, 4, 0)

    def batches(start):
        return (torch.randn(32, width, generator=torch.Generator().manual_seed(step)) for step in range(start, 99))

    how = dict(steps=12, learning_rate=1e-2, dead_tokens=500, checkpoint=path, every=5)
    for row in training.train(model, batches, **how):
        if row["step"] == steps:
            break
    return model.state_dict()


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_checkpoint_that_has_lost_bytes_is_discarded_and_the_training_begins_anew(tmp_path, capsys, share):
    path = tmp_path / "training.pt"
    whole = taught(None)
    taught(path, steps=7)
    os.truncate(path, int(share * path.stat().st_size))
    again = taught(path)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert capsys.readouterr().err.startswith(f"{path}: cannot be read")


def test_a_checkpoint_of_another_training_is_named(tmp_path):
    path = tmp_path / "training.pt"
    taught(path, steps=7)
    with pytest.raises(ValueError, match=r"training\.pt: is of another training .*delete") as said:
        taught(path, width=6)
    assert "\n" not in str(said.value) and path.exists()


# ------------------------------------------------------------------------------------------------- shards


def recorded(folder, stop=None):
    def hear(windows, _ready):
        if stop is not None and windows[0] >= stop:
            raise KeyboardInterrupt
        frames = torch.arange(6.0).reshape(1, 3, 2) + torch.tensor([[[w]] for w in windows])
        return {"site": frames}, np.full((len(windows), 3), 2, np.uint8)

    return store.write(folder, 6, lambda: (hear, None), shard=2, batch=1, dtype="float32")


@pytest.mark.parametrize("name", ["site.npy", "kinds.npy", "sites.json"])
@pytest.mark.parametrize("left", [0, 30])
def test_a_shard_that_has_lost_bytes_is_made_again(tmp_path, capsys, name, left):
    recorded(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        recorded(tmp_path / "cut", stop=4)
    first = shards.place(tmp_path / "cut", 0)
    os.truncate(first / name, left)
    recorded(tmp_path / "cut")
    assert str(first) in capsys.readouterr().err
    files = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "cut") for path in (tmp_path / "cut").rglob("*") if path.is_file()}
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes(), file


# --------------------------------------------------------------------------------------------- leftovers, versions


def test_what_was_killed_long_ago_is_removed_and_what_was_killed_just_now_stays(data):
    place = cache.where(words())
    old, new = place.with_name(".0123456789ab.work"), place.with_name(".ba9876543210.work")
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "training.pt").write_bytes(b"half")
    os.utime(old, (time.time() - 2 * cache.FORGOTTEN,) * 2)
    cache.make(words())
    assert not old.exists() and new.exists()


def test_results_of_other_versions_are_named(data, monkeypatch):
    step = cache.make(words())
    assert step.other_versions == {}
    monkeypatch.setattr(cache, "versions", lambda: step.manifest["versions"] | {"torch": "9.9"})
    again = cache.need(words())
    assert again.other_versions == {"torch": (step.manifest["versions"]["torch"], "9.9")}
    assert results._other_versions([again, again]) == [
        f"torch {step.manifest['versions']['torch']} made some of the results, 9.9 runs now"
    ]
