"""The thread that writes: the same bytes as numpy's, its errors are heard, and what was said before one is kept."""

import errno
import threading
import time

import numpy as np
import pytest

from whisper_sae import shards


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
def test_an_array_that_grows_is_what_numpy_saves(tmp_path, dtype):
    parts = [(np.arange(n * 3) % 200).reshape(n, 3).astype(dtype) for n in (2, 0, 5, 120_000)]
    with shards.GrowingArray(tmp_path / "grown.npy") as grown:
        for part in parts:
            grown.append(part)
    np.save(tmp_path / "saved.npy", np.concatenate(parts))
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()


def test_rows_of_another_kind_are_refused(tmp_path):
    with shards.GrowingArray(tmp_path / "a.npy") as grown:
        grown.append(np.zeros((2, 3), np.float16))
        for wrong in (np.zeros((2, 4), np.float16), np.zeros((2, 3), np.float32)):
            with pytest.raises(ValueError, match=r"a\.npy: rows of"):
                grown.append(wrong)


def batch(n):
    return {"site": np.full((4, 2), n, np.float16)}, np.ones((2, 2), np.uint8)


def test_whole_shards_have_names_and_the_rest_has_none(tmp_path):
    with pytest.raises(KeyboardInterrupt), shards.Writer(tmp_path) as writer:
        for n in range(3):
            writer.put(n // 2, *batch(n), last=n % 2 == 1)
        raise KeyboardInterrupt
    assert [path.name for path in sorted(tmp_path.glob("shard*"))] == ["shard-00000"], "what was put is written"
    assert np.load(tmp_path / "shard-00000" / "site.npy")[:, 0].tolist() == [0] * 4 + [1] * 4
    assert not any(thread.name == "writing" for thread in threading.enumerate())


def test_what_goes_wrong_in_the_thread_is_raised(tmp_path, monkeypatch):
    def full(self, rows):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.GrowingArray, "append", full)
    with pytest.raises(OSError, match="No space left"), shards.Writer(tmp_path) as writer:
        for n in range(100):
            writer.put(n, *batch(n), last=True)
            time.sleep(0.01)
        pytest.fail("nobody said so")
    with pytest.raises(OSError, match="No space left"), shards.Writer(tmp_path) as writer:
        writer.put(0, *batch(0), last=True)
    assert not list(tmp_path.glob("shard*"))


def test_no_more_waits_than_it_may(tmp_path, monkeypatch):
    waits, append = threading.Event(), shards.GrowingArray.append

    def slow(self, rows):
        waits.wait()
        append(self, rows)

    monkeypatch.setattr(shards.GrowingArray, "append", slow)
    put = []

    def work():
        with shards.Writer(tmp_path) as writer:
            for n in range(10):
                writer.put(n, *batch(n), last=True)
                put.append(n)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    assert len(put) <= 3, "one is written, two wait"
    waits.set()
    thread.join()
    assert len(put) == 10 == len(list(tmp_path.glob("shard*")))


def test_what_comes_next_is_made_ready_in_order():
    assert list(shards.ahead(range(20), lambda n: n * n)) == [(n, n * n) for n in range(20)]
    assert list(shards.ahead(range(3), None)) == [(0, None), (1, None), (2, None)]
    assert list(shards.ahead([], lambda n: n)) == []

    def stumble(n):
        if n == 3:
            raise RuntimeError("stumbled")
        return n

    ready = shards.ahead(range(20), stumble)
    assert [next(ready) for _ in range(3)] == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(RuntimeError, match="stumbled"):
        next(ready)
    assert not any(thread.name.startswith("reading") for thread in threading.enumerate())
