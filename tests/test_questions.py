"""What is asked of features and clips is answered as the codes say, in JSON, and reads nothing beside the corpus."""

import base64
import io
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from asked import FEATURES, NASTY, codes_of, world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_messages import ANY

from whisper_sae import catalogue, media, questions, speech


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    return world(tmp_path_factory.mktemp("signed"), signed=True)


def answer(asked, data=b"", **message) -> dict:
    told = asked.answer(message, data)
    json.dumps(told, allow_nan=False)  # plain JSON, whatever it says
    return told


def track(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


# ------------------------------------------------------------------------------------------ feature to clips


def test_a_feature_is_answered_with_the_clips_in_which_it_peaks(asked):
    told = answer(asked, ask="feature", feature=0)
    assert [row["clip"]["clip"] for row in told["found"]] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert [row["value"] for row in told["found"]] == [17, 16, 15, 14, 13, 12, 11, 10]
    assert told["matched"] == told["fires_in"] == told["searched"] == 8 == sum(told["histogram"]["counts"])
    for row in told["found"]:
        clip = row["clip"]["clip"]
        np.testing.assert_allclose(track(row["track"]), asked.codes[clip][:, 0], rtol=1e-3)
        assert row["at"] == pytest.approx(0.06) and row["word"] == (NASTY if clip == 3 else "two")
        assert row["first"] == 0 and row["seconds"] == pytest.approx(len(asked.codes[clip]) * 0.02)
    assert told["rate"] == pytest.approx(np.mean(np.concatenate(asked.codes)[:, 0] > 0))


@pytest.mark.parametrize(
    ("low", "high", "clips"), [(12, 14, [4, 3, 2]), (None, 11.5, [1, 0]), (16.5, None, [7]), (18, None, [])]
)
def test_results_lie_within_the_range(asked, low, high, clips):
    told = answer(asked, ask="feature", feature=0, low=low, high=high)
    assert [row["clip"]["clip"] for row in told["found"]] == clips and told["matched"] == len(clips)
    assert sum(told["histogram"]["counts"]) == 8, "the histogram is of all that was searched"


def test_clips_in_which_it_never_fires_count_at_zero(asked):
    told = answer(asked, ask="feature", feature=10)
    assert told["histogram"]["counts"][0] == 7 and told["histogram"]["counts"][-1] == 1
    assert [row["value"] for row in told["found"]] == [4.5] and told["fires_in"] == 1
    never = answer(asked, ask="feature", feature=11)
    assert never["found"] == [] and sum(never["histogram"]["counts"]) == 8 and never["rate"] == 0


def test_absolute_values_put_both_sides_in_one_order(signed):
    peaks = np.array([[dense[:, 1].max(), dense[:, 1].min()] for dense in signed.codes])
    far = np.where(peaks[:, 0] >= -peaks[:, 1], peaks[:, 0], peaks[:, 1])
    told = answer(signed, ask="feature", feature=1, absolute=True)
    assert [abs(row["value"]) for row in told["found"]] == sorted(np.abs(far[far != 0]), reverse=True)
    up = answer(signed, ask="feature", feature=1)
    assert [row["value"] for row in up["found"]] == sorted(peaks[peaks[:, 0] > 0, 0], reverse=True)
    down = answer(signed, ask="feature", feature=1, high=0)
    assert [row["value"] for row in down["found"]] == sorted(peaks[peaks[:, 1] < 0, 1])
    inside = answer(signed, ask="feature", feature=1, low=2, high=6, absolute=True)
    assert all(2 <= abs(row["value"]) <= 6 for row in inside["found"])


def test_at_most_so_many_and_only_of_the_clips_that_are_searched(tmp_path):
    few = world(tmp_path, searched=[1, 2, 5])
    told = answer(few, ask="feature", feature=0, most=2)
    assert [row["clip"]["clip"] for row in told["found"]] == [5, 2] and told["matched"] == 3
    assert told["searched"] == 3 == sum(told["histogram"]["counts"])
    assert answer(few, ask="about")["clips"] == 3 and answer(few, ask="about")["all_clips"] == 8


# ------------------------------------------------------------------------------------------ clip to features


@pytest.mark.parametrize("which", ["asked", "signed"])
def test_a_clip_is_answered_with_its_features_at_their_peaks(which, request):
    asked = request.getfixturevalue(which)
    for clip, dense in enumerate(asked.codes):
        told = answer(asked, ask="clip", clip=clip)
        far = dense[np.abs(dense).argmax(axis=0), range(FEATURES)]
        assert {row["feature"]: row["value"] for row in told["found"]} == {n: far[n] for n in np.flatnonzero(far)}
        values = [abs(row["value"]) for row in told["found"]]
        assert values == sorted(values, reverse=True) and told["fires"] == len(values)
        for row in told["found"]:
            np.testing.assert_allclose(track(row["track"]), dense[:, row["feature"]], rtol=1e-3)
            assert abs(dense[round(row["at"] / 0.02), row["feature"]]) == pytest.approx(abs(row["value"]))
    assert len(answer(asked, ask="clip", clip=0, most=3)["found"]) == 3


def test_by_share_what_is_rare_comes_before_what_is_loud(asked):
    by_peak, by_share = (answer(asked, ask="clip", clip=2, by=by)["found"] for by in ("peak", "share"))
    assert by_peak[0]["feature"] == 0 and by_share[0]["share"] == 1
    assert 10 in [row["feature"] for row in by_share if row["share"] == 1]
    shares = [row["share"] for row in by_share]
    assert shares == sorted(shares, reverse=True)


def test_the_sound_and_the_picture_are_those_of_the_clip(asked):
    told = answer(asked, ask="media", clip=5)
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(told["sound"])), dtype="float32")
    np.testing.assert_allclose(sound, speech.samples(asked.clips.path[5]), atol=1 / 32_000)
    image = Image.open(io.BytesIO(base64.b64decode(told["picture"])))
    assert rate == 16_000 and image.size == (2 * 41, 80) and told["seconds"] == pytest.approx(41 * 0.02)


def test_of_a_long_clip_thirty_seconds_around_the_peak_are_shown(tmp_path):
    asked = world(tmp_path, lengths=[2000, 30])
    (row, *_) = [r for r in answer(asked, ask="feature", feature=0)["found"] if r["clip"]["clip"] == 0]
    assert row["first"] == 0 and row["seconds"] == 30 and len(track(row["track"])) == 1500
    late = answer(asked, ask="track", clip=0, feature=1, first=9.0)
    np.testing.assert_allclose(track(late["track"]), asked.codes[0][450:1950, 1], rtol=1e-3)
    assert late["first"] == 9 and answer(asked, ask="track", clip=0, feature=1, first=99.0)["first"] == 10
    part = answer(asked, ask="media", clip=0, first=9.0)
    sound, _ = soundfile.read(io.BytesIO(base64.b64decode(part["sound"])), dtype="float32")
    np.testing.assert_allclose(sound, speech.samples(asked.clips.path[0])[144_000:624_000], atol=1 / 32_000)


def test_clips_are_found_by_their_words(asked):
    assert [row["clip"] for row in answer(asked, ask="clips", text="MALE v2")["found"]] == [2, 6]
    told = answer(asked, ask="clips", text="three", most=3)
    assert len(told["found"]) == 3 and told["matched"] == 7


# -------------------------------------------------------------------------------------------------- uploads


def test_a_sound_that_is_handed_over_is_a_clip_like_others(asked):
    path = asked.clips.path[1]
    told = answer(asked, Path(path).read_bytes(), ask="upload", name=NASTY)
    assert told["seconds"] == pytest.approx(0.9)
    mine, theirs = (answer(asked, ask="clip", **one) for one in ({"upload": told["upload"]}, {"clip": 1}))
    assert mine["clip"]["name"] == NASTY and mine["clip"]["upload"] == told["upload"]
    for key in ("feature", "value", "track", "share"):
        assert [row[key] for row in mine["found"]] == [row[key] for row in theirs["found"]], key
    sound = answer(asked, ask="media", upload=told["upload"])["sound"]
    assert base64.b64decode(sound) == media.wav(speech.samples(path)), "wav in, wav out"
    both = answer(asked, ask="compare", a={"clip": 1}, b={"upload": told["upload"]})
    assert all(row["difference"] == 0 for row in both["found"])


def test_only_the_last_sounds_are_kept(tmp_path):
    asked = world(tmp_path)
    data = Path(asked.clips.path[0]).read_bytes()
    numbers = [answer(asked, data, ask="upload", name="x")["upload"] for _ in range(questions.KEPT + 2)]
    assert len(set(numbers)) == len(numbers)
    assert "sound 0 is not here any more" in answer(asked, ask="clip", upload=numbers[0])["error"]
    assert answer(asked, ask="clip", upload=numbers[-1])["found"]


@pytest.mark.parametrize("data", [b"", b"no sound at all"])
def test_what_is_no_sound_is_refused(asked, data):
    assert "error" in answer(asked, data, ask="upload", name="x.wav")


def test_options_take_away_what_they_say(tmp_path):
    asked = world(tmp_path, can=False, notes=None)
    about = answer(asked, ask="about")
    assert (about["can_upload"], about["can_change"], about["can_note"]) == (False, False, False)
    assert "not possible here" in answer(asked, b"x", ask="upload")["error"]
    assert "not possible here" in answer(asked, ask="change", clip=0, scales={"1": 2})["error"]
    assert "nothing is kept here" in answer(asked, ask="note", feature=1)["error"]
    assert answer(asked, ask="feature", feature=1)["note"] is None


# -------------------------------------------------------------------------------------------------- compare


def test_what_is_left_out_of_the_groups_is_named(asked):
    about = answer(asked, ask="about")
    assert list(about["groups"]) == ["gender"] and about["left_out"] == {"mood": "no two groups have two speakers"}


def test_of_many_groups_the_largest_are_kept_whatever_their_number():
    """150 dialects of two speakers each, but the first of four; and one of a single speaker."""
    dialect = [f"d{n // 2:03d}" for n in range(300)] + ["d000", "d000", "rare"]
    clips = pd.DataFrame({"dialect": dialect, "speaker": [f"v{n}" for n in range(len(dialect))]})
    clips = clips.assign(age=[str(20 + n // 2) for n in range(len(clips))], sort="x", empty="", grade="1")
    clips.loc[:9, "grade"] = "2"
    groups, left_out = catalogue.groups_of(clips)
    assert groups == {"dialect": [f"d{n:03d}" for n in range(12)], "grade": ["1", "2"]}
    kept, alone = left_out.pop("dialect").split("; left out, since ")
    assert kept.startswith("the 12 groups with most speakers; left out: d012 (2), d013 (2)")
    assert kept.endswith("and 130 more") and alone == "they have one speaker: rare"
    assert left_out == {
        "age": "numbers, which are no groups", "sort": "a single group: x",
        "empty": "no clip of a named speaker has a value",
    }  # fmt: skip


def test_groups_are_compared_within_corpora(tmp_path):
    asked = world(tmp_path / "world")
    asked.clips["corpus"] = "a"
    gender = {name: {"column": "gender", "value": value} for name, value in (("a", "female"), ("b", "male"))}
    assert answer(asked, ask="compare", **gender)["within"] == ""
    asked.clips["corpus"] = np.where(asked.clips.speaker.isin(["v0", "v1"]), "a", "b")
    assert answer(asked, ask="compare", **gender)["within"] == "corpus"
    asked.clips["corpus"] = asked.clips.gender
    assert "none has both" in answer(asked, ask="compare", **gender)["error"]


def test_a_speaker_of_both_groups_is_left_out_and_named(tmp_path):
    asked = world(tmp_path / "world")
    gender = {name: {"column": "gender", "value": value} for name, value in (("a", "female"), ("b", "male"))}
    asked.clips["speaker"] = list("aabcdefg")
    asked.clips["gender"] = ["female", "female", "female", "female", "male", "male", "male", "female"]
    before = answer(asked, ask="compare", **gender)
    asked.clips.loc[1, "gender"] = "male"
    told = answer(asked, ask="compare", **gender)
    assert (before["in_both"], told["in_both"]) == ([], ["a"])
    assert [(one["found"][0]["speakers_a"], one["found"][0]["speakers_b"]) for one in (before, told)] == [
        (4, 3),
        (3, 3),
    ]
