"""What was recorded is what the model says, without padding, each frame once, in shards that can be resumed."""

import functools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperForConditionalGeneration

from whisper_sae import cache
from whisper_sae.activations import extract, store
from whisper_sae.data import clip_table
from whisper_sae.experiments import pipeline
from whisper_sae.model import whisper_model

SITES = ("encoder.*",)


@pytest.fixture
def made(small_whisper, corpus, data, run_for):
    """Recorded at every encoder site: (run, table of clips, windows, Activations, step)."""
    run = run_for(small_whisper, corpus(voices=3, clips=4), sites=SITES)
    clips = cache.make(pipeline.clips(run, 0))
    step = cache.make(pipeline.activations(run, 0))
    heard = pipeline.table(run, clips)
    return run, heard, step.table("windows.csv"), store.Activations(step.path), step


# ---------------------------------------------------------------------------------------- what is written


def test_padding_is_never_stored(made):
    _, _, windows, recorded, step = made
    assert (windows.samples < 32_000).any(), "some windows are padded"
    valid = np.ceil(windows.samples / 320).astype(int)
    assert recorded.spans[:, 2].tolist() == valid.tolist()
    assert ((recorded.kinds > 0).sum(axis=1) == valid).all()
    for window, n in enumerate(valid):
        assert (recorded.kinds[window, :n] != clip_table.PADDING).all()
        assert (recorded.kinds[window, n:] == clip_table.PADDING).all()
    for site in recorded.sites:
        rows = [len(np.load(path)) for path in sorted(step.path.glob(f"shard-*/{site}.npy"))]
        assert sum(rows) == valid.sum() == step.facts["frames"]
    assert step.facts["frames_padding"] == (100 - valid).sum()
    assert step.facts["frames_padding"] + step.facts["frames"] == 100 * len(windows)


def test_what_is_stored_is_what_the_model_says(made, loaded):
    _, heard, windows, recorded, _ = made
    for window in range(len(windows)):
        sound = pipeline.sound_of(heard, windows, window)
        live = whisper_model.record(loaded, whisper_model.mel(loaded, [sound]), list(recorded.sites))
        valid = -(-len(sound) // 320)
        for site in recorded.sites:
            stored = recorded.window(site, window)
            assert stored.dtype == np.float16
            np.testing.assert_allclose(stored, live[site][0, :valid], rtol=2**-10, atol=2e-5)


def test_windows_are_not_mixed_up(made):
    """The test above would pass if all windows sounded alike."""
    recorded = made[3]
    first = [recorded.window("encoder.1.resid", window)[0].astype(float) for window in range(len(recorded.spans))]
    apart = [np.abs(a - b).max() for i, a in enumerate(first) for b in first[:i]]
    assert min(apart) > 0.01


def test_float32_is_exact(small_whisper, corpus, data, run_for, loaded):
    run = run_for(small_whisper, corpus(voices=1, clips=2), dtype="float32", batch_windows=1)
    clips = cache.make(pipeline.clips(run, 0))
    step = cache.make(pipeline.activations(run, 0))
    recorded, windows = store.Activations(step.path), step.table("windows.csv")
    sound = pipeline.sound_of(pipeline.table(run, clips), windows, 0)
    live = whisper_model.record(loaded, whisper_model.mel(loaded, [sound]), ["encoder.1.resid"])["encoder.1.resid"][0]
    assert recorded.window("encoder.1.resid", 0).dtype == np.float32
    np.testing.assert_array_equal(recorded.window("encoder.1.resid", 0), live[: -(-len(sound) // 320)])


def test_bfloat16_is_read_as_float32(small_whisper, corpus, data, run_for, loaded):
    """Half the bytes; the rounding is torch's, and all readers give float32."""
    folder, site, held = corpus(voices=2, clips=3), "encoder.1.resid", {}
    for dtype in ("bfloat16", "float32"):
        run = run_for(small_whisper, folder, dtype=dtype, sites=("encoder.1.resid", "encoder.1.normed"))
        cache.make(pipeline.clips(run, 0))
        step = cache.make(pipeline.activations(run, 0))
        held[dtype] = store.Activations(step.path)
        assert step.facts["dtype"] == dtype == json.loads((step.path / "index.json").read_text())["dtype"]
    narrow, exact = held.values()
    bytes_of = [(one.folder / "shard-00000" / f"{site}.npy").stat().st_size - 128 for one in held.values()]
    assert 2 * bytes_of[0] == bytes_of[1]
    for window in range(len(exact.spans)):
        stored, right = narrow.window(site, window), torch.from_numpy(exact.window(site, window).copy())
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored, right.to(torch.bfloat16).float())
        np.testing.assert_array_equal(
            narrow.moments("encoder.1.normed", window), exact.moments("encoder.1.normed", window)
        )
    taken = narrow.rows(site).take(np.arange(70))
    assert torch.equal(taken, exact.rows(site).take(np.arange(70)).to(torch.bfloat16).float())


def test_index_spans_and_shards_agree(made):
    run, _, windows, recorded, step = made
    index = json.loads((step.path / "index.json").read_text())
    shards = -(-len(windows) // run.shard_windows)
    assert shards > 2, "more than one shard, or this says little"
    assert index["shards"] == shards == len(list(step.path.glob("shard-*")))
    assert index["positions"] == 100 == recorded.kinds.shape[1]
    assert index["dtype"] == "float16"
    assert recorded.spans[:, 0].tolist() == [window // run.shard_windows for window in range(len(windows))]
    for shard in range(shards):
        first, rows = recorded.spans[recorded.spans[:, 0] == shard, 1:].T
        assert first.tolist() == [0, *np.cumsum(rows)[:-1]]
        assert len(np.load(step.path / f"shard-{shard:05d}" / "encoder.0.resid.npy")) == rows.sum()


def test_sites_keep_the_order_of_the_model(made, loaded):
    _, _, _, recorded, step = made
    right = whisper_model.sites(loaded.config, SITES)
    assert list(right) != sorted(right), "or the alphabet would do"
    assert list(recorded.sites.items()) == list(right.items())
    assert list(step.facts["sites"]) == list(right)


def test_a_site_that_was_not_recorded_is_named(made):
    with pytest.raises(KeyError, match=r"'encoder\.9\.resid' was not recorded; recorded: encoder\.embed"):
        made[3].rows("encoder.9.resid")


def test_a_long_clip_is_heard_in_windows_that_add_up(made, loaded):
    _, heard, windows, recorded, _ = made
    counts = windows.groupby("clip").size()
    assert (counts == 2).any(), "some clips are longer than a window"
    for clip in counts[counts == 2].index:
        sound = clip_table.samples(heard.path[clip])
        first, second = windows.index[windows["clip"] == clip]
        assert recorded.spans[[first, second], 2].sum() == -(-len(sound) // 320)
        assert recorded.spans[first, 2] == 100
        rest = whisper_model.record(loaded, whisper_model.mel(loaded, [sound[32_000:]]), ["encoder.0.resid"])[
            "encoder.0.resid"
        ][0]
        stored = recorded.window("encoder.0.resid", second)
        np.testing.assert_allclose(stored, rest[: len(stored)], rtol=2**-10, atol=2e-5)


# ------------------------------------------------------------------------------------------- what is read


def all_rows(recorded, site, windows):
    return np.concatenate([recorded.window(site, window) for window in windows]).astype(np.float32)


def test_take_equals_plain_indexing(made):
    recorded = made[3]
    count = len(recorded.spans)

    @given(st.data())
    def check(data):
        if data.draw(st.booleans(), "as a mask"):
            chosen = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any)))
            windows = np.flatnonzero(chosen)
        else:
            windows = chosen = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True)))
        rows = recorded.rows("encoder.1.resid", chosen)
        naive = all_rows(recorded, "encoder.1.resid", windows)
        assert len(rows) == len(naive)
        which = np.array(data.draw(st.lists(st.integers(0, len(naive) - 1), max_size=40)), dtype=int)
        np.testing.assert_array_equal(rows.take(which), naive[which])
        kinds = np.concatenate([recorded.kinds[window][recorded.kinds[window] > 0] for window in windows])
        np.testing.assert_array_equal(recorded.valid_kinds(chosen), kinds)
        np.testing.assert_array_equal(rows.per_window(windows), np.repeat(windows, recorded.spans[windows, 2]))

    check()


def test_chunks_are_all_rows_in_order(made):
    recorded = made[3]
    rows = recorded.rows("encoder.1.resid")
    naive = all_rows(recorded, "encoder.1.resid", range(len(recorded.spans)))
    chunks = list(rows.chunks(100))
    assert {len(chunk) for chunk in chunks[:-1]} == {100}
    np.testing.assert_array_equal(torch.cat(chunks), naive)


def test_a_sample_has_no_row_twice(made):
    rows = made[3].rows("encoder.1.resid")
    assert len(torch.unique(rows.sample(200, seed=0), dim=0)) == 200
    assert len(torch.unique(rows.sample(10**6, seed=0), dim=0)) == len(rows)
    assert torch.equal(rows.sample(50, seed=1), rows.sample(50, seed=1))
    assert not torch.equal(rows.sample(50, seed=1), rows.sample(50, seed=2))


@pytest.mark.parametrize("size", [64, 1_000_000])
def test_every_pass_is_a_permutation(made, size):
    rows = made[3].rows("encoder.1.resid", np.array([0, 3, 5, 8]))
    size = min(size, 2 * len(rows) + 5)  # the greater one spans more than two passes at once
    number = {row.tobytes(): i for i, row in enumerate(rows.take(np.arange(len(rows))).numpy())}
    assert len(number) == len(rows), "rows can be told apart"
    passes = 5
    batches = list(rows.batches(size, -(-passes * len(rows) // size), seed=0))
    assert {len(batch) for batch in batches} == {size}
    read = [number[row.tobytes()] for row in torch.cat(batches).numpy()]
    orders = [read[turn * len(rows) : (turn + 1) * len(rows)] for turn in range(passes)]
    for order in orders:
        assert sorted(order) == list(range(len(rows)))
    assert len(set(map(tuple, orders))) == passes, "each pass has an order of its own"


@pytest.mark.parametrize("size", [50, 700])
def test_reading_can_begin_anywhere(made, size):
    rows = made[3].rows("encoder.1.resid", np.arange(6))
    whole = list(rows.batches(size, 20, seed=3))
    for start in (0, 1, 7, 19):
        later = list(rows.batches(size, 20, seed=3, start=start))
        assert len(later) == 20 - start
        assert all(torch.equal(a, b) for a, b in zip(whole[start:], later, strict=True))
    other = next(rows.batches(size, 20, seed=4))
    assert not torch.equal(other, whole[0])


@pytest.mark.parametrize(("size", "buffer"), [(64, 150), (64, 1), (700, 90), (64, 10**6), (1, 300)])
def test_a_bounded_buffer_gives_every_row_once_a_pass(made, size, buffer):
    rows = made[3].rows("encoder.1.resid", np.array([0, 3, 5, 8]))
    number = {row.tobytes(): i for i, row in enumerate(rows.take(np.arange(len(rows))).numpy())}
    steps = -(-3 * len(rows) // size)
    batches = list(rows.batches(size, steps, seed=0, buffer=buffer))
    assert {len(batch) for batch in batches} == {size}
    read = [number[row.tobytes()] for row in torch.cat(batches).numpy()]
    orders = [read[turn * len(rows) : (turn + 1) * len(rows)] for turn in range(3)]
    assert all(sorted(order) == list(range(len(rows))) for order in orders)
    assert len(set(map(tuple, orders))) == 3, "each pass has an order of its own"
    for start in (1, steps // 2, steps - 1):
        later = list(rows.batches(size, steps, seed=0, start=start, buffer=buffer))
        assert all(torch.equal(a, b) for a, b in zip(batches[start:], later, strict=True))


def test_a_buffer_reads_windows_whole(made, monkeypatch):
    rows, asked = made[3].rows("encoder.1.resid"), []
    take = store.Rows.take
    monkeypatch.setattr(store.Rows, "take", lambda self, which: asked.append(np.array(which)) or take(self, which))
    list(rows.batches(50, len(rows) // 50, seed=0, buffer=300))
    assert 2 < len(asked) <= len(rows) // 300 + 2, "once a buffer, not once a batch"
    asked = [np.sort(which) for which in asked]
    assert all((np.diff(which) > 0).all() for which in asked) and max(map(len, asked)) <= 300 + 100
    assert sum((np.diff(which) > 1).sum() for which in asked) <= len(rows.windows), "in runs"


def test_no_windows_is_an_error(made):
    with pytest.raises(ValueError, match=r"encoder\.1\.resid: no windows were chosen"):
        made[3].rows("encoder.1.resid", np.zeros(len(made[3].spans), dtype=bool))


# -------------------------------------------------------------------------------- what must not be stored


@pytest.fixture
def spoilt(small_whisper, tmp_path):
    """A copy of the small Whisper whose layer 1 adds `value` to one dimension: `spoilt(value)`; infinity by two weights
    that are finite, for others are refused."""

    def copy(value: float):
        whole = WhisperForConditionalGeneration.from_pretrained(small_whisper)
        layer = whole.model.encoder.layers[1]
        layer.fc2.bias.data[5] = min(value, 3e38)
        if math.isinf(value):
            layer.self_attn.out_proj.bias.data[5] = 3e38
        whole.save_pretrained(tmp_path / "spoilt")
        (tmp_path / "spoilt" / "preprocessor_config.json").write_bytes(
            (small_whisper / "preprocessor_config.json").read_bytes()
        )
        return tmp_path / "spoilt"

    return copy


@pytest.mark.parametrize(
    ("value", "dtype", "why"),
    [
        (1e6, "float16", "too large for float16: use bfloat16 or float32"),
        (float("inf"), "bfloat16", "NaN or infinite"),
        (float("inf"), "float32", "NaN or infinite"),
        (float("inf"), "float16", "NaN or infinite"),
    ],
)
def test_values_that_cannot_be_kept_are_refused(spoilt, corpus, data, run_for, value, dtype, why):
    run = run_for(spoilt(value), corpus(voices=1, clips=2), dtype=dtype)
    cache.make(pipeline.clips(run, 0))
    with pytest.raises(ValueError, match=why) as said:
        cache.make(pipeline.activations(run, 0))
    assert str(said.value).startswith("encoder.1.resid: ")
    assert "\n" not in str(said.value)
    with pytest.raises(cache.NotMade):
        cache.need(pipeline.activations(run, 0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_float16_cannot_hold_others_can(spoilt, corpus, data, run_for, dtype):
    run = run_for(spoilt(7e4), corpus(voices=1, clips=2), dtype="float16")
    cache.make(pipeline.clips(run, 0))
    with pytest.raises(ValueError, match="too large for float16: use bfloat16 or float32"):
        cache.make(pipeline.activations(run, 0))
    recorded = store.Activations(cache.make(pipeline.activations(replace(run, dtype=dtype), 0)).path)
    loudest = np.abs(recorded.window("encoder.1.resid", 0)).max()
    assert loudest == pytest.approx(7e4, rel=2**-8)
    assert recorded.rows("encoder.1.resid").take(np.arange(20)).abs().max() > 6.9e4


# ------------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("survived", [0, 3, 8])
def test_an_interrupted_run_goes_on_and_writes_the_same_bytes(made, data, tmp_path, monkeypatch, survived):
    run, *_, uninterrupted = made
    batches = -(-len(uninterrupted.table("windows.csv")) // run.batch_windows)
    assert batches > 8
    monkeypatch.setenv("WHISPER_SAE_DATA", str(tmp_path / "again"))
    cache.make(pipeline.clips(run, 0))
    record, calls = whisper_model.record, []
    monkeypatch.setattr(extract, "seconds_a_window", lambda *args: 1.0)  # hears, too

    def stop_after(limit):
        @functools.wraps(record)
        def counted(*args):
            if len(calls) == limit:
                raise KeyboardInterrupt
            calls.append(1)
            return record(*args)

        return counted

    monkeypatch.setattr(extract, "seconds_a_window", lambda *_: 0.0)  # listens, too
    monkeypatch.setattr(whisper_model, "record", stop_after(survived))
    with pytest.raises(KeyboardInterrupt):
        cache.make(pipeline.activations(run, 0))
    with pytest.raises(cache.NotMade):
        cache.need(pipeline.activations(run, 0))
    calls.clear()
    monkeypatch.setattr(whisper_model, "record", stop_after(None))
    resumed = cache.make(pipeline.activations(run, 0))
    kept = survived // (run.shard_windows // run.batch_windows) * (run.shard_windows // run.batch_windows)
    assert len(calls) == batches - kept, "whole shards are not heard again"
    assert resumed.path != uninterrupted.path
    assert resumed.manifest["files"] == uninterrupted.manifest["files"]
    assert resumed.facts == uninterrupted.facts
