"""Which rows are read and when is decided by seeds alone, whatever source they come from."""

import numpy as np
import pytest
import torch

from whisper_sae.activations.dataset import Source


class Numbers(Source):
    """Rows that tell where they are from: site a says (window, row in it), site b their sum. Keeps what was asked."""

    def __init__(self, counts):
        self.sites, self.counts, self.asked = {"a": 2, "b": 1}, np.asarray(counts), []

    def fill(self, into, at, sites, window, inside):
        self.asked.append(list(dict.fromkeys(window.tolist())))
        said = {"a": np.stack([window, inside], axis=1), "b": (window + inside)[:, None]}
        into[at] = np.concatenate([said[site] for site in sites], axis=1)


COUNTS = np.random.default_rng(0).integers(1, 40, size=60)
TOGETHER = np.repeat(np.arange(20), 3)


def read(batches):
    return [tuple(row) for row in torch.cat(list(batches)).int().tolist()]


@pytest.mark.parametrize("together", [None, TOGETHER], ids=["alone", "together"])
@pytest.mark.parametrize("buffer", [1, 90, 400, 10**6])
def test_a_pass_reads_every_row_and_every_window_once(together, buffer):
    source = Numbers(COUNTS)
    rows = source.rows("a", np.arange(60) % 7 != 0, together=together, buffer=buffer)
    everything = read(rows.chunks(100))
    assert everything == sorted(everything) and len(everything) == len(rows)
    source.asked.clear()
    steps = len(rows) // 50 + 1
    one_pass = read(rows.batches(50, steps, seed=1))[: len(rows)]
    assert sorted(one_pass) == everything and one_pass != everything
    windows = [window for asked in source.asked for window in asked]
    assert windows[: len(rows.windows)] == list(dict.fromkeys(windows))[: len(rows.windows)], "none is read twice"


def test_what_was_heard_together_is_read_together():
    source = Numbers(COUNTS)
    rows = source.rows("a", together=TOGETHER, buffer=100)
    for _ in rows.batches(50, len(rows) // 50, seed=0):
        pass
    pools = [{TOGETHER[window] for window in asked} for asked in source.asked]
    assert all(not one & other for i, one in enumerate(pools) for other in pools[:i])
    apart = source.rows("a", buffer=100)
    source.asked.clear()
    for _ in apart.batches(50, len(rows) // 50, seed=0):
        pass
    pools = [{TOGETHER[window] for window in asked} for asked in source.asked]
    assert any(one & other for i, one in enumerate(pools) for other in pools[:i]), "or the test above says nothing"


def test_windows_each_alone_are_read_as_if_nothing_were_said_of_it():
    one, other = (Numbers(COUNTS).rows("a", together=t, buffer=200) for t in (None, np.arange(60)))
    assert all(torch.equal(a, b) for a, b in zip(one.batches(64, 30, 3), other.batches(64, 30, 3), strict=True))


@pytest.mark.parametrize(("size", "buffer"), [(50, 90), (300, 90), (50, 0), (300, 0)])
def test_several_sites_are_read_side_by_side_as_each_alone(size, buffer):
    source = Numbers(COUNTS)
    both = source.rows(("b", "a"), np.arange(10, 50), buffer=buffer)
    assert both.width == 3
    for site in ("a", "b"):
        alone = source.rows(site, np.arange(10, 50), buffer=buffer)
        for x, y in zip(both.batches(size, 20, 5, start=3), alone.batches(size, 20, 5, start=3), strict=True):
            assert torch.equal(both.apart(x)[site], y) and both.apart(x)[site].is_contiguous()
        assert torch.equal(both.apart(both.sample(77, 2))[site], alone.sample(77, 2))


def test_with_a_buffer_a_sample_asks_for_few_windows():
    source = Numbers(np.full(200, 50))
    sample = source.rows("a", buffer=500).sample(300, seed=4)
    assert len(torch.unique(sample, dim=0)) == 300
    assert len(source.asked) == 1 and len(source.asked[0]) == 10, "as many as fill the buffer"
    source.asked.clear()
    assert len(source.rows("a", buffer=500).sample(2_000, seed=4)) == 2_000
    assert len(source.asked[0]) == 40, "or as the sample takes"
    assert len(torch.unique(source.rows("a", buffer=500).sample(10**6, seed=4), dim=0)) == 200 * 50
    rows = source.rows("a", buffer=500)
    assert torch.equal(rows.sample(300, 4), sample) and not torch.equal(rows.sample(300, 5), sample)


def test_what_is_not_there_is_named():
    source = Numbers(COUNTS)
    with pytest.raises(KeyError, match=r"site 'c' was not recorded; recorded: a, b"):
        source.rows(("a", "c"))
    with pytest.raises(ValueError, match=r"^a, b: no windows were chosen"):
        source.rows(("a", "b"), np.zeros(60, dtype=bool))
