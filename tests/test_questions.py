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

from whisper_sae.data import clip_table
from whisper_sae.explorer import api, catalogue
from whisper_sae.viz import media


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
    np.testing.assert_allclose(sound, clip_table.samples(asked.clips.path[5]), atol=1 / 32_000)
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
    np.testing.assert_allclose(sound, clip_table.samples(asked.clips.path[0])[144_000:624_000], atol=1 / 32_000)


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
    assert base64.b64decode(sound) == media.wav(clip_table.samples(path)), "wav in, wav out"
    both = answer(asked, ask="compare", a={"clip": 1}, b={"upload": told["upload"]})
    assert all(row["difference"] == 0 for row in both["found"])


def test_only_the_last_sounds_are_kept(tmp_path):
    asked = world(tmp_path)
    data = Path(asked.clips.path[0]).read_bytes()
    numbers = [answer(asked, data, ask="upload", name="x")["upload"] for _ in range(api.KEPT + 2)]
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


def test_two_clips_and_two_groups_are_compared(asked):
    told = answer(asked, ask="compare", a={"clip": 2}, b={"clip": 3})
    first = told["found"][0]
    assert (first["feature"], first["a"], first["b"], first["difference"]) == (10, 4.5, 0, 1)
    assert told["names"] == ["clip 2", NASTY] and not told["groups"]
    women, men = ({"column": "gender", "value": value} for value in ("female", "male"))
    told = answer(asked, ask="compare", a=women, b=men, most=5)
    assert told["groups"] and len(told["found"]) == 5
    means = [[asked.codes[clip].mean(axis=0) for clip in (voice, voice + 4)] for voice in range(4)]
    means = np.mean(means, axis=1)  # (speaker, feature)
    for row in told["found"]:
        assert row["a"] == pytest.approx(means[[0, 2], row["feature"]].mean(), rel=1e-2)
        assert (row["speakers_a"], row["speakers_b"]) == (2, 2)


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ({"clip": 1}, {"column": "gender", "value": "male"}, "a group can be compared with a group only"),
        ({"column": "gender", "value": "male"}, {"column": "gender", "value": "male"}, "the same"),
        ({"column": "path", "value": "x"}, {"column": "path", "value": "y"}, "column: 'path' is not one of gender"),
        ({"column": "gender", "value": "x"}, {"column": "gender", "value": "male"}, "value: 'x' is not one of"),
        ({"clip": 1, "path": "/etc/passwd"}, {"clip": 2}, "path: no such field"),
        ({"clip": 8}, {"clip": 2}, "clip: must be a whole number from 0 to 7, got 8"),
        (3, {"clip": 2}, "a: must be an object"),
    ],
)
def test_what_cannot_be_compared_is_refused(asked, a, b, why):
    assert why in answer(asked, ask="compare", a=a, b=b)["error"]


# --------------------------------------------------------------------------------------------- change and note


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"scales": {"1": math.nan}}, "scale of 1: must be a number, got nan"),
        ({"scales": {"1": math.inf}}, "scale of 1: must be a number"),
        ({"scales": {"1": 100.5}}, "scale of 1: must be from -2 to 100"),
        ({"scales": {"1": -2.1}}, "scale of 1: must be from -2 to 100"),
        ({"scales": {"12": 1}}, "feature: must be a whole number from 0 to 11, got 12"),
        ({"scales": {"-1": 1}}, "feature: must be a whole number"),
        ({"scales": {"²": 1}}, "feature: must be a whole number"),
        ({"scales": {}}, "scales: must name at least one feature"),
        ({"scales": {str(n): 1 for n in range(17)}}, "at most 16 at a time"),
        ({"scales": None}, "scales: must name"),
        ({"scales": {"1": 2}, "start": 2, "end": 1}, "start: 2 s is not before the end"),
        ({"scales": {"1": 2}, "clip": 99}, "clip: must be a whole number"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(asked, message, why):
    assert why in answer(asked, **{"ask": "change", "clip": 0} | message)["error"]


def test_a_change_is_passed_on(asked):
    told = answer(asked, ask="change", clip=1, scales={"3": 2, "4": -2.0}, start=0.1, end=0.5, control=True)
    assert told["edited"].startswith("one, two") and told["control"]["text"] == "one two tree"
    assert set(told["tracks"]) == {3, 4} and told["clip"]["name"] == "clip 1"


def test_a_note_is_kept_and_still_there_for_whoever_comes_next(tmp_path):
    asked = world(tmp_path)
    told = answer(asked, ask="note", feature=3, category="phone", description=NASTY, confidence=0.8, evidence="loud")
    assert told["label"] == NASTY and told["by"] == "note"
    after = api.Questions(
        asked.drawn, asked.clips, filters=asked.sounds.filters, roots=[tmp_path], title="x", notes=asked.notes
    )
    note = answer(after, ask="feature", feature=3)["note"]
    assert (note["category"], note["description"], note["confidence"]) == ("phone", NASTY, 0.8)
    assert len(note["when"]) == 10 and answer(after, ask="about")["notes"] == [note]
    assert answer(after, ask="forget", feature=3)["note"] is None and asked.notes.notes() == {}
    assert "no note on 3" in answer(after, ask="forget", feature=3)["error"]


@pytest.mark.parametrize(
    "message",
    [{"category": "nonsense"}, {"confidence": 1.5}, {"confidence": math.nan}, {"description": 3}, {"feature": 12},
     {"description": "\ud800"}, {"description": "x" * 20_001}, {"path": "/tmp/x"}],
)  # fmt: skip
def test_a_note_that_cannot_be_kept_is_refused(asked, message):
    assert "error" in answer(asked, **{"ask": "note", "feature": 1} | message) and asked.notes.notes() == {}


# ------------------------------------------------------------------------------------------- what is not read


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(list(api.FIELDS)),
    st.dictionaries(
        st.text()
        | st.sampled_from(
            ["feature", "clip", "upload", "most", "low", "high", "scales", "first", "a", "b", "text", "absolute"]
        ),
        ANY,
    ),
    ANY,
)
def test_whatever_is_asked_there_is_an_answer_in_json(asked, ask, fields, other):
    if ask not in ("note", "forget"):
        answer(asked, **{"ask": ask} | {k: v for k, v in fields.items() if k != "ask"})
    json.dumps(asked.answer(other), allow_nan=False)


PLACES = ["/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "corpus/../../secret.wav", "~", "0"]


def test_no_question_opens_a_file_outside_of_the_corpus(tmp_path):
    """Whatever name is put in whatever field: the files that are opened are the corpus, the index and the notes.

    A sound is opened by Python, to see that it is whole, before libsndfile may have it: so each is seen here."""
    asked = world(tmp_path / "here")
    soundfile.write(tmp_path / "secret.wav", np.full(16_000, 0.5), 16_000)
    opened, watching = [], [True]

    def watch(event, details):
        if watching[0] and event == "open" and isinstance(details[0], str | bytes):
            opened.append(os.path.realpath(os.fsdecode(details[0])))

    sys.addaudithook(watch)
    for ask, fields in api.FIELDS.items():
        for place in [*PLACES, str(tmp_path / "secret.wav")]:
            for name in fields.replace(",", "").split():
                told = asked.answer({"ask": ask, "feature": 0, "clip": 0, name: place} | {"path": place})
                assert "root:" not in json.dumps(told)
            asked.answer({"ask": ask, "clip": place})
    for clip in range(8):
        assert "sound" in asked.answer({"ask": "media", "clip": clip})
    watching[0] = False
    inside = str((tmp_path / "here").resolve())
    code = tuple(os.path.realpath(place) for place in sys.path if place)  # what is imported late
    outside = {path for path in opened if not path.startswith((inside, *code, sys.base_prefix))}
    assert f"{inside}/corpus/7.wav" in opened, "the corpus was read, and that is seen"
    assert not outside


@pytest.mark.parametrize("how", ["absolute", "dots"])
def test_a_table_that_leads_out_of_the_corpus_is_not_followed(tmp_path, how):
    asked = world(tmp_path / "here")
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, np.full(16_000, 0.5), 16_000)
    corpus = tmp_path / "here" / "corpus"
    path = {"absolute": secret, "dots": corpus / ".." / ".." / "secret.wav"}[how]
    asked.clips.loc[2, "path"] = str(path)
    for message in ({"ask": "media", "clip": 2}, {"ask": "change", "clip": 2, "scales": {"1": 2}}):
        assert answer(asked, **message)["error"] == "clip: clip 2 lies outside of the corpus, and is not read"


def test_a_file_behind_a_link_is_read_as_notebooks_read_it(tmp_path):
    asked = world(tmp_path / "here")
    corpus = tmp_path / "here" / "corpus"
    path = corpus / "2.wav"
    path.rename(tmp_path / "elsewhere.wav")
    path.symlink_to(tmp_path / "elsewhere.wav")
    asked.clips.loc[2, "path"] = str(path)
    assert "error" not in answer(asked, ask="media", clip=2)


def test_the_codes_of_the_world_are_what_the_tests_believe():
    assert [dense[:, 0].max() for dense in codes_of([30] * 8, False)] == list(range(10, 18))
