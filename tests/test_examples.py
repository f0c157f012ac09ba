"""Examples are of all that a feature does, one of a clip, few of a speaker, and at the right moment."""

import itertools
import tempfile

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_sae.activations import store
from whisper_sae.data import clip_table
from whisper_sae.features import examples, index, index_builder

KINDS = ("loudest", "random", "silent")


def examples_of(dense, clips, speakers, folder, **options) -> examples.Examples:
    """Examples from codes (row, feature); `clips` lists, for each piece, its clip and its number of rows."""
    clip, counts = np.array(clips).reshape(-1, 2).T
    signed = bool((dense < 0).any())
    index_builder.build(folder, counts, lambda first, last: dense[first:last], dense.shape[1], signed=signed)
    begun = pd.Series(counts).groupby(clip).cumsum().to_numpy() - counts  # rows of the clip before the piece
    windows = pd.DataFrame({"clip": clip, "first": 320 * begun})
    table = pd.DataFrame({"speaker": speakers})
    return examples.Examples(index.Index(folder), table, windows, **options)


def column(values) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


@st.composite
def corpora(draw):
    """One feature's values, clip and rows of each piece, and each clip's speaker; some clips have two pieces."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 25))
    pieces = [(clip, int(rng.integers(1, 7))) for clip in range(count) for _ in range(rng.integers(1, 3))]
    pieces = [pieces[one] for one in rng.permutation(len(pieces))]
    rows = sum(n for _, n in pieces)
    values = rng.integers(1, 9, rows) / 8 * (rng.random(rows) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])))
    values = values * rng.choice([-1, 1], rows) if draw(st.booleans()) else values
    speakers = [f"v{n}" if n else "" for n in rng.integers(0, draw(st.integers(1, 8)), count)]
    return column(values), pieces, speakers


@settings(max_examples=20)
@given(corpora(), st.integers(0, 30), st.sampled_from([1, 2, None]))
def test_one_of_a_clip_few_of_a_speaker_and_as_many_as_there_are(made, n, per_speaker):
    dense, pieces, speakers = made
    with tempfile.TemporaryDirectory() as folder:
        found = examples_of(dense, pieces, speakers, folder)
        clip_of_row = np.repeat([clip for clip, _ in pieces], [rows for _, rows in pieces])
        fires = np.unique(clip_of_row[dense[:, 0] != 0])
        rests = np.unique(clip_of_row[dense[:, 0] == 0])
        voices = np.array([who or f"clip {clip}" for clip, who in enumerate(speakers)])
        inside = np.abs(dense[:, 0] - 0.5) <= 0.25
        asked = {
            "loudest": (found.loudest(0, n, per_speaker), fires),
            "random": (found.random(0, n, per_speaker), fires),
            "silent": (found.silent(0, n, per_speaker), rests),
            "range": (found.between(0, 0.25, 0.75, n, per_speaker), np.unique(clip_of_row[inside])),
        }
        for kind, (told, possible) in asked.items():
            assert told.kind.eq(kind).all() and told["clip"].is_unique and set(told["clip"]) <= set(possible)
            most = len(possible) if per_speaker is None else per_speaker
            assert len(told) == min(n, pd.Series(voices[possible]).value_counts().clip(upper=most).sum()), kind
            assert pd.Series(voices[told["clip"]]).value_counts().max() <= most or told.empty
            check_rows(told, dense, pieces, speakers)
        ranged = asked["range"][0]
        assert ranged.value.between(0.25, 0.75).all() and inside[ranged.row].all()
        assert asked["silent"][0].value.eq(0).all() and asked["random"][0].value.ne(0).all()
        never = ~np.isin(asked["silent"][0]["clip"], fires)
        if per_speaker is None:
            assert never.sum() == min(n, len(set(range(len(speakers))) - set(fires))), "those that never fire"


def check_rows(told, dense, pieces, speakers):
    """Whether piece, clip, speaker, value and seconds are those of the row."""
    starts = np.concatenate([[0], np.cumsum([rows for _, rows in pieces])])
    seen = {}
    begun = [seen.setdefault(clip, []).append(n) or sum(seen[clip][:-1]) for clip, n in pieces]
    for row in told.itertuples():
        assert starts[row.piece] <= row.row < starts[row.piece + 1]
        assert row.clip == pieces[row.piece][0] and row.speaker == speakers[row.clip]
        assert row.value == dense[row.row, 0]
        frame = begun[row.piece] + row.row - starts[row.piece]
        assert row.seconds == pytest.approx(0.02 * frame, abs=1e-9)


@settings(max_examples=20)
@given(corpora(), st.integers(0, 3))
def test_deciles_cut_the_clips_by_their_peaks(made, n):
    dense, pieces, speakers = made
    with tempfile.TemporaryDirectory() as folder:
        found = examples_of(dense, pieces, speakers, folder)
        told = found.deciles(0, n, per_speaker=None)
        peaks = found.loudest(0, 1000, per_speaker=None)
        assert told["clip"].is_unique
        merged = told.merge(peaks[["clip", "row", "value"]], on=["clip", "row", "value"])
        assert len(merged) == len(told), "an example of a decile is at its clip's peak"
        tenth = told.kind.str.removeprefix("decile ").astype(int)
        assert tenth.is_monotonic_decreasing and tenth.between(1, 10).all()
        assert told.value.abs().groupby(tenth).agg(["min", "max"]).stack().is_monotonic_increasing
        fires = len(peaks)
        of_each = np.bincount((2 * np.arange(fires) + 1) * 10 // (2 * fires), minlength=10) if fires else np.zeros(10)
        assert tenth.value_counts().reindex(range(1, 11), fill_value=0).tolist() == np.minimum(of_each, n).tolist()
        check_rows(told, dense, pieces, speakers)


@pytest.mark.parametrize("side", index.SIDES)
def test_each_side_has_its_examples(tmp_path, side):
    dense = column([1, -3, 0, 2, 0, 0, -1, 0, 0, 5, -6, 7])
    found = examples_of(dense, [(clip, 3) for clip in range(4)], [""] * 4, tmp_path)
    peaks = {"both": [7, -3, 2, -1], "positive": [7, 2, 1], "negative": [-6, -3, -1]}[side]
    assert found.loudest(0, side=side).value.tolist() == peaks
    assert sorted(found.deciles(0, side=side).value) == sorted(peaks)
    for value in found.random(0, 9, side=side).value:
        assert value and (side == "both" or (value > 0) == (side == "positive"))
    silent = found.silent(0, 9, side=side)
    fired = dense[silent.row, 0]
    wrong = {"both": fired != 0, "positive": fired > 0, "negative": fired < 0}[side]
    assert not wrong.any() and len(silent) == {"both": 3, "positive": 4, "negative": 4}[side]
    assert found.between(0, 2, 6, absolute=True).value.abs().between(2, 6).all()
    assert sorted(found.between(0, -6, -2).value) == [-6, -3]


@settings(max_examples=20)
@given(corpora(), st.integers(0, 6), st.integers(1, 4))
def test_the_features_of_a_clip_are_its_columns(made, n, features):
    dense, pieces, speakers = made
    rng = np.random.default_rng(len(dense))
    dense = np.concatenate([dense] + [dense[rng.permutation(len(dense))] for _ in range(features - 1)], axis=1)
    clip_of_row = np.repeat([clip for clip, _ in pieces], [rows for _, rows in pieces])
    with tempfile.TemporaryDirectory() as folder:
        found = examples_of(dense, pieces, speakers, folder)
        for clip in range(len(speakers)):
            told = found.features_of(clip, n)
            peaks = np.abs(dense[clip_of_row == clip]).max(axis=0)
            order = np.argsort(-peaks, kind="stable")
            wanted = order[peaks[order] > 0][:n]
            assert told.feature.tolist() == wanted.tolist() and (told["clip"] == clip).all()
            assert told.value.abs().tolist() == peaks[wanted].tolist()
            assert told.value.tolist() == [dense[row, feature] for feature, row in zip(wanted, told.row, strict=True)]
            for row in told.itertuples():
                side = dense[:, row.feature] * np.sign(row.value)
                assert row.share == pytest.approx(abs(row.value) / side.max()) and 0 < row.share <= 1


# ------------------------------------------------------------------------------------------------- edge cases


@pytest.fixture
def ten(tmp_path):
    """Ten clips of four rows by five speakers, one feature of the given values."""

    def make(values, clips=10, **options):
        speakers = [f"v{clip % 5}" for clip in range(clips)]
        return examples_of(column(values), [(clip, 4) for clip in range(clips)], speakers, tmp_path, **options)

    return make


def test_equal_activations_everywhere(ten):
    found = ten(np.ones(40))
    loudest = found.loudest(0, 6)
    assert loudest["clip"].tolist() == [0, 1, 2, 3, 4, 5] and (loudest.seconds == 0.0).all(), "the first of equals"
    assert found.loudest(0, 10, per_speaker=1)["clip"].tolist() == [0, 1, 2, 3, 4]
    deciles = found.deciles(0)
    assert deciles.kind.tolist() == [f"decile {n}" for n in range(10, 0, -1)] and deciles.value.eq(1).all()
    assert len(found.random(0, 5)) == 5 and found.silent(0).empty
    assert len(found.between(0, 1, 1)) == 10 and found.between(0, 1.01, 9).empty


def test_a_feature_that_never_fires(ten):
    found = ten(np.zeros(40))
    for told in (found.loudest(0), found.deciles(0), found.random(0), found.between(0, -9, 9)):
        assert told.empty and list(told) == examples.COLUMNS
    assert len(found.silent(0, 5)) == 5
    of = found.of(0)
    assert of.kind.eq("silent").all() and len(of) == 5


def test_a_feature_that_always_fires(ten):
    found = ten(np.arange(1, 41))
    assert found.loudest(0, 3).value.tolist() == [40, 36, 32]
    assert found.deciles(0).value.tolist() == list(range(40, 0, -4)), "a clip for each decile"
    assert found.silent(0).empty and found.of(0).kind.nunique() == 12


def test_one_clip_only(ten):
    found = ten([0, 2, 1, 0], clips=1)
    assert found.loudest(0).row.tolist() == [1] and found.loudest(0).seconds.tolist() == [0.02]
    assert found.deciles(0).kind.tolist() == ["decile 6"]
    assert found.random(0).row[0] in (1, 2) and found.silent(0).row[0] in (0, 3)
    assert len(found.of(0)) == 4


def test_fewer_clips_than_asked(ten):
    found = ten([0, 1, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0], clips=3)
    assert found.loudest(0, 20)["clip"].tolist() == [1, 0]
    assert found.deciles(0, 5).kind.tolist() == ["decile 8", "decile 3"]
    assert found.silent(0, 20)["clip"].tolist()[0] == 2, "the clip in which it never fires comes first"


def test_tables_that_do_not_fit(ten):
    found = ten(np.ones(40))
    with pytest.raises(ValueError, match="windows: 3 rows, but the index has 10 pieces"):
        examples.Examples(found.index, pd.DataFrame({"speaker": ["a"]}), pd.DataFrame({"clip": [0] * 3, "first": 0}))
    with pytest.raises(IndexError, match="clip: there is no 10; there are 10"):
        found.features_of(10)
    with pytest.raises(ValueError, match="side: 'up' is not one of"):
        found.loudest(0, side="up")


# ------------------------------------------------------------------------------------------------------ chance


def test_what_is_drawn_does_not_depend_on_what_was_asked_before(ten):
    rng = np.random.default_rng(0)
    values = rng.random(40) * (rng.random(40) < 0.5)
    first, second, other = ten(values), ten(values), ten(values, seed=1)
    before = first.random(0, 4)
    for _ in range(3):
        first.silent(0)
        first.random(0, 2)
    pd.testing.assert_frame_equal(first.random(0, 4), before)
    pd.testing.assert_frame_equal(second.random(0, 4), before)
    assert any(not other.random(0, n).equals(first.random(0, n)) for n in range(1, 8))


def test_each_firing_is_as_likely_as_any_other(tmp_path):
    """Of a clip with 12 firings and one with 4, the first comes up first three times out of four, at any of them."""
    dense = column([1] * 12 + [0] * 4 + [1] * 4 + [0] * 12)
    found = examples_of(dense, [(0, 16), (1, 16)], ["a", "b"], tmp_path)
    drawn = []
    for seed in range(600):
        found.seed = seed
        drawn.append(int(found.random(0, 1).row[0]))
    counts = np.bincount(drawn, minlength=32)
    assert counts[12:16].sum() == counts[20:].sum() == 0
    fired = counts[[*range(12), *range(16, 20)]]
    assert (np.abs(fired - 37.5) < 5 * 37.5**0.5).all(), fired  # five standard deviations


def test_speakers_not_yet_heard_come_first(tmp_path):
    """Twenty clips, two in each decile, one of them always by the same speaker."""
    dense, speakers = column(np.repeat(np.arange(1, 11), 2)), [n for k in range(10) for n in ("often", f"v{k}")]
    found = examples_of(dense, [(clip, 1) for clip in range(20)], speakers, tmp_path)
    assert (found.deciles(0).speaker == "often").sum() <= 1


# --------------------------------------------------------------------------------------------------- the moment


def test_the_word_under_the_peak(ten):
    words = pd.DataFrame(
        [
            (0, 0.0, 0.02, "the"),
            (0, 0.02, 0.07, "ring"),
            (1, 0.05, 0.5, "of"),
            (1, 0.0, 0.03, ""),
            (2, 1.0, 2.0, "far"),
        ],
        columns=["clip", "start", "end", "word"],
    )
    values = np.zeros(40)
    values[[1, 2, 4, 8]] = [5, 0, 4, 3]  # clip 0 at 20 ms, where a word begins, clips 1 and 2 at 0 ms
    found = ten(values, words=words)
    assert found.loudest(0).word.tolist() == ["ring", "", ""]
    assert list(found.silent(0)) == [*examples.COLUMNS, "word"]
    assert "word" not in ten(values).loudest(0)
    assert "word" in ten(np.zeros(40), words=words).loudest(0), "even where there is no example"


@given(st.integers(1, 400), st.floats(0, 0.03), st.floats(0.001, 0.05))
def test_an_excerpt_has_its_moment_in_the_middle(samples, seconds, length):
    sound = np.arange(1, samples + 1, dtype=np.float32)
    told = examples.excerpt(sound, seconds, length)
    assert len(told) == 2 * round(length * 8000) and told.dtype == np.float32
    at = round(seconds * 16_000)
    for place, value in enumerate(told.tolist()):
        there = at - len(told) // 2 + place
        assert value == (sound[there] if 0 <= there < samples else 0)


BURSTS = [0.05, 0.4, 0.77, 1.234, 2.005, 2.6]
"""Seconds; the windows are 2 s long, so that the last two lie in the second window of their clip."""


def test_planted_bursts_are_centred(tmp_path):
    """From sound to excerpt: a burst in each clip, a store of the energy of each frame, the loudest examples."""
    rng, rows = np.random.default_rng(0), []
    for clip, moment in enumerate(BURSTS):
        sound = rng.normal(0, 0.001, 3 * 16_000)
        begin = round(moment * 16_000)
        sound[begin : begin + 160] += rng.normal(0, 0.3 + 0.05 * clip, 160)  # 10 ms
        path = tmp_path / f"{clip}.flac"
        soundfile.write(path, sound, 16_000)
        rows.append({"path": str(path), "duration": 3.0, "speaker": f"v{clip}"})
    clips = pd.DataFrame(rows)
    windows = clip_table.windows(clips, 32_000)
    folder = tmp_path / "store"
    folder.mkdir()

    def hear(numbers, _ready):
        said, kinds = torch.zeros(len(numbers), 100, 2), np.zeros((len(numbers), 100), np.uint8)
        for place, number in enumerate(numbers):
            clip, first, count = windows.loc[number, ["clip", "first", "samples"]]
            frame = clip_table.samples(clips.path[clip])[first : first + count].reshape(-1, 320)
            said[place, : len(frame), 1] = torch.from_numpy(np.square(frame).mean(axis=1))
            kinds[place, : len(frame)] = 2
        return {"site": said}, kinds

    store.write(folder, len(windows), lambda: (hear, lambda _: None), shard=2, batch=2, dtype="float32")
    rows = store.Activations(folder).rows("site")
    counts = rows.counts
    index_builder.build(tmp_path, counts, lambda a, b: rows.take(np.arange(a, b)), 2)
    told = examples.Examples(index.Index(tmp_path), clips, windows).loudest(1)
    assert sorted(told["clip"]) == list(range(len(BURSTS)))
    for row in told.itertuples():
        middle = BURSTS[row.clip] + 0.005
        assert abs(row.seconds - middle) <= 0.02
        around = examples.excerpt(clip_table.samples(clips.path[row.clip]), row.seconds, 1.0)
        loud = np.average(np.arange(len(around)), weights=np.square(around) * (np.abs(around) > 0.05))
        assert abs(loud - len(around) / 2) <= 0.02 * 16_000, row


def test_kinds_are_in_their_order(ten):
    rng = np.random.default_rng(3)
    told = ten(rng.random(40) * (rng.random(40) < 0.4)).of(0, loudest=2, decile=1, random=3, silent=2)
    kinds = [kind for kind, _ in itertools.groupby(told.kind.str.split().str[0])]
    assert kinds == ["loudest", "decile", "random", "silent"]
    assert told.kind.value_counts()[["loudest", "random", "silent"]].tolist() == [2, 3, 2]
