"""An index is built in a stream: the same bytes from any chunks, after any kill, in the same memory for any corpus."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_sae.features import index, index_builder

FEATURES = 40


def codes(first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows, features and values of some rows; those of a row are the same in any chunk."""
    row, feature, value = [], [], []
    for number in range(first, last):
        rng = np.random.default_rng(number)
        said = np.sort(rng.choice(FEATURES, 4, replace=False))
        row += [number - first] * 4
        feature += said.tolist()
        value += rng.integers(1, 50, 4).tolist()
    return np.array(row, int), np.array(feature, int), np.array(value, np.float32)


def dense(rows: int) -> np.ndarray:
    row, feature, value = codes(0, rows)
    found = np.zeros((rows, FEATURES), np.float32)
    found[row, feature] = value
    return found


COUNTS = np.array([3, 0, 5, 1, 20, 2, 2, 9, 0, 4, 30, 1])


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def right(tmp_path_factory) -> dict[str, bytes]:
    """What is written when all is sorted at once."""
    folder = tmp_path_factory.mktemp("right")
    index_builder.build(folder, COUNTS, codes, FEATURES)
    return files(folder)


@settings(max_examples=20)
@given(st.integers(1, 80), st.integers(1, 400), st.booleans())
def test_the_same_bytes_in_any_chunks(tmp_path_factory, right, chunk, held, sparse):
    folder, asked = tmp_path_factory.mktemp("built"), []
    every = dense(COUNTS.sum())

    def say(first, last):
        asked.append((first, last))
        return codes(first, last) if sparse else every[first:last]

    index_builder.build(folder, COUNTS, say, FEATURES, chunk=chunk, held=held)
    assert files(folder) == right
    starts = np.concatenate([[0], np.cumsum(COUNTS)])
    assert asked[0][0] == 0 and asked[-1][1] == COUNTS.sum()
    assert all(one[1] == two[0] for one, two in itertools.pairwise(asked))
    for first, last in asked:
        assert first in starts and last in starts
        assert last - first <= chunk or not ((starts > first) & (starts < last)).any(), "whole pieces"


def test_torch_is_understood(tmp_path, right):
    import torch

    def say(first, last):
        return tuple(torch.from_numpy(part) for part in codes(first, last))

    index_builder.build(tmp_path, COUNTS, say, FEATURES)
    assert files(tmp_path) == right


def test_the_index_is_as_large_as_it_says(tmp_path):
    facts = index_builder.build(tmp_path, COUNTS, codes, FEATURES)
    assert facts["firings"] == 4 * COUNTS.sum() and facts["rows"] == COUNTS.sum() and facts["pieces"] == len(COUNTS)
    size = {path.name: path.stat().st_size - 128 for path in tmp_path.glob("*.npy")}  # without numpy's header
    assert size["position.npy"] + size["value.npy"] == 4 * facts["firings"]
    of_passages = [name for name in size if name.startswith(("passage.", "by_piece.")) and "first" not in name]
    assert sum(size[name] for name in of_passages) == 16 * facts["passages"]
    assert sum(size[name] for name in size.keys() - {"position.npy", "value.npy", *of_passages}) == (
        8 * 2 * (len(COUNTS) + 1) + 8 * 2 * (FEATURES + 1) + 4 * 2 * FEATURES
    )


# ------------------------------------------------------------------------------------------------ what is wrong


def say_once(*parts):
    row, feature, value = parts
    return lambda first, last: (np.array(row), np.array(feature), np.array(value, np.float32))


@pytest.mark.parametrize(
    ("say", "said"),
    [
        (say_once([0, 1], [2, 3], [1, np.nan]), "feature 3 at row 1 is NaN or infinite"),
        (say_once([0], [2], [np.inf]), "feature 2 at row 0 is NaN or infinite"),
        (say_once([0], [2], [-1]), "feature 2 at row 0 is negative; build the index with signed=True"),
        (say_once([0], [5], [1]), "there is no feature 5; there are 5"),
        (say_once([0], [-1], [1]), "there is no feature -1"),
        (say_once([1, 0], [2, 2], [1, 1]), "rows must rise and lie below 4, got 0"),
        (say_once([4], [2], [1]), "rows must rise and lie below 4, got 4"),
        (say_once([-1], [2], [1]), "rows must rise and lie below 4, got -1"),
        (say_once([1, 1], [2, 2], [1, 3]), "feature 2 is told twice of a row"),
        (lambda first, last: np.zeros((3, 5)), r"codes: \(3, 5\) for 4 rows of 5 features"),
    ],
)
def test_codes_that_cannot_be(tmp_path, say, said):
    with pytest.raises(ValueError, match=f"codes: {said}" if not said.startswith("codes") else said):
        index_builder.build(tmp_path, np.array([4]), say, 5)
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize(
    ("counts", "said"), [([0, 0], "there are no rows"), ([1, 70_000], r"piece 1 has 70,000 rows; 65,535 at most")]
)
def test_pieces_that_cannot_be(tmp_path, counts, said):
    with pytest.raises(ValueError, match=f"counts: {said}"):
        index_builder.build(tmp_path, np.array(counts), codes, FEATURES)


def test_the_longest_piece(tmp_path):
    rows = 65_535
    index_builder.build(tmp_path, np.array([rows]), lambda first, last: np.ones((rows, 1), np.float32), 1)
    found = index.Index(tmp_path)
    assert found.count(0) == found.peaks(0).firings[0] == rows
    assert found.activations(0)[0][-1] == rows - 1 and found.top(0, 3)[0].tolist() == [0, 1, 2]


def test_a_progress_bar_that_drops_something_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match="progress must yield"):
        index_builder.build(tmp_path, COUNTS, codes, FEATURES, chunk=9, progress=lambda chunks: chunks[:-1])


# -------------------------------------------------------------------------------------------------- interrupted

SCRIPT = """
import os, signal, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_transpose import COUNTS, FEATURES, codes
from whisper_sae.features import index_builder
folder, what, when, nth = Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
calls = 0

def deadly(function):
    def call(*args, **named):
        global calls
        calls += 1
        if calls == nth and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        found = function(*args, **named)
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    return call

if what == "say":
    codes = deadly(codes)
else:
    owner, name = what.split(".")
    setattr(globals()[owner] if owner in globals() else transpose, name, deadly(getattr(
        globals()[owner] if owner in globals() else transpose, name)))
index_builder.build(folder, COUNTS, codes, FEATURES, chunk=9, held=40)
"""


RUNS = 5


@pytest.mark.parametrize(
    ("what", "when", "nth", "left"),
    [("say", "before", 5, 3), ("index_builder._join", "after", 1, RUNS), *(
        pytest.param(*rarer, marks=pytest.mark.slow) for rarer in (
            ("os.rename", "before", 2, 1), ("os.unlink", "after", 3, RUNS - 1), ("say", "before", 1, 0),
            ("os.rename", "after", 2, 2), ("index_builder._read", "after", 9, RUNS),
            ("os.rename", "after", RUNS + 1, RUNS - 1)))],
)  # fmt: skip
def test_a_killed_build_goes_on_and_gives_the_same_bytes(tmp_path, right, what, when, nth, left):
    asks = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path), what, when, str(nth)]
    assert subprocess.run(asks).returncode == -9
    whole, asked = sorted(tmp_path.glob("run-*")), []
    say = lambda first, last: asked.append(first) or codes(first, last)  # noqa: E731
    index_builder.build(tmp_path, COUNTS, say, FEATURES, chunk=9, held=40)
    assert files(tmp_path) == right
    assert len(whole) == left
    if left:
        assert 0 not in asked, "what was finished is not asked about again"
    if left == RUNS:
        assert not asked


def test_runs_that_do_not_connect_are_made_again(tmp_path, right):
    with pytest.raises(KeyboardInterrupt):
        index_builder.build(tmp_path, COUNTS, stops_at(6), FEATURES, chunk=9, held=40)
    runs = sorted(tmp_path.glob("run-*"))
    assert len(runs) > 2
    for file in runs[1].iterdir():
        file.unlink()
    runs[1].rmdir()
    index_builder.build(tmp_path, COUNTS, codes, FEATURES, chunk=9, held=40)
    assert files(tmp_path) == right


def stops_at(call: int):
    calls = []

    def say(first, last):
        calls.append(first)
        if len(calls) == call:
            raise KeyboardInterrupt
        return codes(first, last)

    return say


# ------------------------------------------------------------------------------------------------------ memory

MEMORY = """
import sys, tempfile
from pathlib import Path
import numpy as np
from whisper_sae.features import index, index_builder
pieces, rows, features, k = int(sys.argv[1]), 500, 512, 8

def say(first, last):
    rng = np.random.default_rng(first)
    row = np.repeat(np.arange(last - first), k)
    group = features // k
    feature = np.tile(np.arange(k) * group, last - first) + rng.integers(0, group, len(row))
    feature[::k] = 0  # fires always
    return row, feature, rng.random(len(row), dtype=np.float32) + 0.1

with tempfile.TemporaryDirectory() as folder:
    facts = index_builder.build(folder, np.full(pieces, rows), say, features, chunk=2000, held=200_000)
told = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(facts["firings"], int(told) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak memory")
def test_memory_does_not_grow_with_the_corpus():
    found = []
    for pieces in (100, 800):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(pieces)], capture_output=True, text=True, env=os.environ
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        firings, megabytes = done.stdout.split()
        found.append((int(firings), float(megabytes)))
    (few, small), (many, large) = found
    assert many == 8 * few and many * 10 > 30e6, "what is on disk is much more than what may be added"
    assert large < small + 10, f"{small} MB for {few:,} firings, {large} MB for {many:,}"
