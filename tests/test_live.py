"""On the fly, activations are those of a store: the same bits from the same batches, else equal up to rounding.

No window is heard twice without need.
"""

import functools
from dataclasses import replace
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch
from coders import flipped, require_close
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_sae import cache
from whisper_sae.activations import extract, store, streaming
from whisper_sae.data import clip_table
from whisper_sae.experiments import pipeline, training_data
from whisper_sae.model import whisper_model
from whisper_sae.sae import architectures

SITES = ("encoder.0.resid", "encoder.1.mlp_hidden", "encoder.1.resid")


@pytest.fixture
def both(small_whisper, corpus, data, run_for):
    """The same clips recorded, and to be heard: `both(**fields)` gives (run, clips, Activations, Live, windows)."""

    def prepare(*, keep=0, padded=False, **fields):
        folder = data.parent / "voices"
        run = run_for(small_whisper, folder if folder.exists() else corpus(), sites=SITES, **fields)
        heard = pipeline.table(run, cache.make(pipeline.clips(run, 0)))
        step = cache.make(pipeline.activations(run, 0))
        source, windows = training_data.heard_live(run, heard, SITES, keep=keep, padded=padded)
        return run, heard, store.Activations(step.path), source, windows

    return prepare


@pytest.fixture
def hearings(monkeypatch):
    """How many windows each pass through the encoder was asked about, silence not counted."""
    counts, listener = [], extract.listener

    @functools.wraps(listener)
    def counted(*args):
        hear, prepare = listener(*args)
        return lambda numbers, ready: counts.append(list(numbers)) or hear(numbers, ready), prepare

    monkeypatch.setattr(extract, "listener", counted)
    return counts


def same(one, other):
    pairs = list(zip(one, other, strict=True))
    assert pairs
    return all(torch.equal(a, b) for a, b in pairs)


def require_alike(one, other, dtype="float16"):
    for a, b in zip(one, other, strict=True):
        require_close(a, b, dtype)


# --------------------------------------------------------------------------------------- the same as stored


@pytest.mark.parametrize(
    ("how", "dtype"),
    [("clip", "float16"), ("packed", "bfloat16"), ("packed", "float32"), *(pytest.param(*other, marks=pytest.mark.slow)
     for other in (("packed", "float16"), ("clip", "bfloat16"), ("clip", "float32")))],
)  # fmt: skip
def test_read_in_order_every_row_is_that_of_the_store(both, how, dtype):
    """The same batches of the same windows: the same bits, since shards hold whole batches here. Where they do not, a
    window has another place in its batch, on which its last bits depend on some processors."""
    _, _, recorded, source, windows = both(windows=how, dtype=dtype, batch_windows=3, shard_windows=6)
    assert source.total % 3, "the last batch is not full"
    assert (windows.groupby("heard").size() > 1).any() == (how == "packed")
    assert list(source.sites) == list(recorded.sites)
    np.testing.assert_array_equal(source.counts, recorded.counts)
    assert same(source.rows(SITES).chunks(100), recorded.rows(SITES).chunks(100))
    _, _, recorded, source, _ = both(windows=how, dtype=dtype, batch_windows=3, shard_windows=4)
    require_alike(source.rows(SITES).chunks(100), recorded.rows(SITES).chunks(100), dtype)
    for sites in (*SITES, SITES[::-1]):  # some windows are remembered: other batches
        require_alike(source.rows(sites).chunks(100), recorded.rows(sites).chunks(100), dtype)


@pytest.mark.parametrize("keep", [0, 300, 10**6])
def test_what_is_taken_does_not_depend_on_what_was_taken_before(both, keep, rounding):
    _, _, recorded, source, _ = both(keep=keep)
    heard, stored = source.rows("encoder.1.resid"), recorded.rows("encoder.1.resid")

    @settings(max_examples=25)
    @given(st.lists(st.integers(0, len(stored) - 1), min_size=1, max_size=40))
    def check(which):
        require_close(heard.take(np.array(which)), stored.take(np.array(which)), "float16")

    check()


@pytest.mark.parametrize("how", ["clip", "packed"])
def test_batches_and_samples_are_those_of_the_store(both, how, rounding):
    _, heard, recorded, source, windows = both(windows=how, keep=400)
    train = pipeline.windows_of(heard, windows, "train")
    one, other = (s.rows(SITES, train, together=windows.heard, buffer=400) for s in (source, recorded))
    assert len(one) > 2 * 400, "a buffer does not hold them all"
    require_alike(one.batches(128, 30, seed=1), other.batches(128, 30, seed=1))
    require_alike(one.batches(128, 30, seed=1, start=17), other.batches(128, 30, seed=1, start=17))
    require_close(one.sample(200, seed=2), other.sample(200, seed=2), "float16")


def coder_of(x: torch.Tensor) -> architectures.SAE:
    """An SAE that was not trained, fitted in size and threshold to some frames: (frame, width)."""
    coder = architectures.create("batchtopk", x.shape[1], 256, 8)
    coder.start_on(x)
    coder.calibrate([x])
    return coder.eval().requires_grad_(False)


@pytest.mark.parametrize("rounds", ["as it is", "otherwise"])
def test_a_window_says_the_same_however_many_are_asked(both, loaded, rounds, request):
    """Alone, in a batch of four, and with two threads: equal up to rounding, and hardly an SAE activation flips."""
    if rounds == "otherwise":
        request.getfixturevalue("rounding")
    run, heard, _, _, windows = both(batch_windows=4)
    hear, prepare = extract.listener(run, loaded, heard, windows, list(SITES))
    every = range(len(windows))
    together = [hear(every[n : n + 4], prepare(every[n : n + 4]))[0] for n in every[::4]]
    together = {site: torch.cat([part[site] for part in together]) for site in SITES}
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            alone = [hear([n], prepare([n]))[0] for n in every]
        finally:
            torch.set_num_threads(threads)
        for site in SITES:
            one, other = torch.cat([part[site] for part in alone]).flatten(0, 1), together[site].flatten(0, 1)
            require_close(one, other)
            coder = coder_of(other)
            assert flipped(coder.encode(one), coder.encode(other)) < 0.001


# ------------------------------------------------------------------------------------------- what is heard


def test_in_order_every_window_is_heard_once(both, hearings):
    _, _, _, source, windows = both(batch_windows=4)
    hearings.clear()
    for _ in source.rows(SITES).chunks(150):
        pass
    assert list(chain(*hearings)) == list(range(len(windows)))
    assert max(map(len, hearings)) == 4 and len(hearings) <= -(-len(windows) // 4) + 1, "in full batches"


def test_a_pass_hears_every_window_once_and_none_where_all_are_remembered(both, hearings):
    for keep, passes in ((0, 2), (10**6, 1)):
        _, _, _, source, windows = both(keep=keep)
        rows = source.rows("encoder.1.resid", buffer=300)
        hearings.clear()
        for _ in rows.batches(len(rows), 2, seed=0):
            pass
        count = pd.Series(list(chain(*hearings))).value_counts()
        assert len(count) == len(windows)
        assert count.max() <= passes + 1 and (count == passes).mean() > 0.7, "but for what filled up a batch"


def test_packed_clips_are_heard_once_a_pass(both, hearings):
    _, _, _, source, windows = both(windows="packed")
    rows = source.rows("encoder.1.resid", together=windows.heard, buffer=300)
    hearings.clear()
    for _ in rows.batches(len(rows), 1, seed=0):
        pass
    count = pd.Series(list(chain(*hearings))).value_counts()
    assert len(count) == windows.heard.max() + 1 < len(windows) and (count == 1).mean() > 0.7


def test_no_more_is_remembered_than_allowed(both):
    _, _, _, source, _ = both(keep=500)
    for _ in source.rows("encoder.1.resid").batches(64, 20, seed=0, buffer=300):
        held = sum(map(len, source.memory.values()))
        assert held == source.memory.held <= 500 or len(source.memory) <= 4
    assert all(rows.base is None for rows in source.memory.values()), "none holds on to its whole batch"


def test_only_the_sites_that_are_asked_for_are_recorded(both, monkeypatch):
    run, heard, *_ = both()
    source, _ = training_data.heard_live(run, heard, ("encoder.0.resid",))
    asked, record = [], whisper_model.record
    monkeypatch.setattr(whisper_model, "record", lambda *args: asked.append(args[2]) or record(*args))
    source.rows("encoder.0.resid").take(np.arange(5))
    assert asked == [["encoder.0.resid"]]


# --------------------------------------------------------------------------------------------- with padding


def test_padding_comes_after_what_is_valid(both, loaded):
    _, heard, recorded, source, windows = both(padded=True, keep=10**6)
    site = "encoder.1.resid"
    rows, valid = source.rows(site), source.without_padding().rows(site)
    assert len(rows) == 100 * len(windows) and len(valid) == recorded.counts.sum()
    padding = source.is_padding(rows)
    everything = rows.take(np.arange(len(rows)))
    stored = recorded.rows(site)
    assert torch.equal(everything[~padding], stored.take(np.arange(len(stored))))
    assert torch.equal(valid.take(np.arange(len(valid))), everything[~padding])
    sound = extract.sound_of(heard, windows, 3)
    said = whisper_model.record(loaded, whisper_model.mel(loaded, [sound]), [site])[site][0]
    torch.testing.assert_close(everything[300:400], said, rtol=2**-10, atol=2e-5)
    assert (padding[300:400] == (clip_table.kinds(sound, 320, 100) == clip_table.PADDING)).all()
    assert not source.is_padding(valid).any()


def test_what_one_has_heard_the_other_remembers(both, hearings):
    _, _, _, source, windows = both(padded=True, keep=10**6)
    hearings.clear()
    for rows in (source.rows(SITES), source.without_padding().rows(SITES), source.rows("encoder.0.resid")):
        rows.take(np.arange(len(rows)))
    assert list(chain(*hearings)) == list(range(len(windows)))


def test_packed_windows_have_padding_of_nobody(both):
    with pytest.raises(ValueError, match=r"padded: .* windows must be clip"):
        both(windows="packed", padded=True)


# ----------------------------------------------------------------------------------------- what goes wrong


def silent(numbers, value=0.0, valid=10):
    kinds = np.zeros((len(numbers), 20), np.uint8)
    kinds[:, :valid] = 2
    return {"site": torch.full((len(numbers), 20, 3), value)}, kinds


PIECES = np.array([[0, 0, 10], [1, 0, 10], [2, 0, 10]])


def test_a_clip_of_another_length_than_foretold_is_noticed():
    source = streaming.Live(lambda numbers: silent(numbers, valid=9), PIECES, {"site": 3}, batch=2)
    with pytest.raises(ValueError, match="window 1: 9 frames were heard where 10 were foretold"):
        source.rows("site", np.array([1])).take(np.arange(3))


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [(7e4, "float16", "too large for float16: use bfloat16"), (float("nan"), "float32", "NaN or infinite")],
)
def test_values_that_a_store_would_refuse_are_refused(value, dtype, said):
    source = streaming.Live(lambda numbers: silent(numbers, value), PIECES, {"site": 3}, batch=2, dtype=dtype)
    with pytest.raises(ValueError, match=f"^site: activations of windows 0-1 are {said}"):
        source.rows("site").take(np.arange(3))


def test_7e4_is_heard_in_bfloat16():
    source = streaming.Live(lambda numbers: silent(numbers, 7e4), PIECES, {"site": 3}, batch=2, dtype="bfloat16")
    assert torch.equal(source.rows("site").take(np.arange(30)), torch.full((30, 3), 70_144.0))


def test_nothing_is_written(both, data):
    run, heard, *_ = both()
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    source, _ = training_data.heard_live(replace(run, on_the_fly=True, shuffle_buffer=100), heard, SITES)
    source.rows(SITES).sample(300, 0)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
