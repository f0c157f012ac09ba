"""The gallery of a run: its examples are at the right moment of the right sound, and notes outlive what is remade."""

import base64
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile
from bs4 import BeautifulSoup

from whisper_sae import cache
from whisper_sae.data import clip_table
from whisper_sae.experiments import dashboards, feature_index, phone_selectivity, pipeline, sae_comparison
from whisper_sae.experiments.dashboards import AROUND
from whisper_sae.explorer import annotations

SITE = "encoder.1.resid"
PHONES = 25  # of 40 ms, whose edges are not at the middle of a frame


@pytest.fixture(scope="module")
def prepared():
    """What `made` has made, by what was asked: the profile and its data, which are copied for every test."""
    return {}


@pytest.fixture
def made(small_whisper, corpus, run_for, data, prepared):
    """A small profile with an index; /a/ and /b/ are told in turn of the first second of every clip."""

    def prepare(told=True, **fields):
        key = told, *fields.items()
        if key in prepared:
            run, folder = prepared[key]
            shutil.copytree(folder, data)
            return run
        folder = corpus(clips=2)
        if told:
            clips = pd.read_csv(folder / "metadata.csv").file_name
            rows = [(name, 40 * n, 40 * (n + 1), "ab"[n % 2], "wort", 0) for name in clips for n in range(PHONES)]
            columns = ["file_name", "start_ms", "end_ms", "phone", "word", "word_index"]
            pd.DataFrame(rows, columns=columns).to_csv(folder / "phones.csv", index=False)
        run = run_for(small_whisper, folder, tokens=2_000, **fields)
        cache.make(pipeline.clips(run, 0))
        cache.make(pipeline.activations(run, 0))
        cache.make(sae_comparison.dictionary(run, 0, SITE))
        cache.make(feature_index.codes(run, 0, SITE))
        prepared[key] = run, shutil.copytree(data, data.with_name("prepared"))
        return run

    return prepare


def held(page: dashboards.Page) -> dict:
    return json.loads(BeautifulSoup(page.path.read_text(encoding="utf-8"), "html.parser").find(id="data").string)


@pytest.mark.parametrize("windows", ["clip", "packed"])
def test_an_excerpt_is_the_sound_around_the_peak(made, windows):
    run = made(windows=windows)
    page = dashboards.page(run, 0, SITE, most=3, each=3)
    data, drawn = held(page), feature_index.examples_in(run, 0, SITE)
    heard = pipeline.table(run, cache.need(pipeline.clips(run, 0))).set_index("id")
    assert page.features == len(data["features"]) == 3 and page.bytes == page.path.stat().st_size
    assert page.path == page.path.parent / f"features-{SITE}.html" and page.path.parent.name == "test"
    for number, some in data["examples"].items():
        assert len({data["excerpts"][one["excerpt"]]["clip"] for one in some}) == len(some) <= 3
        assert some[0]["kind"] == "loudest" and abs(some[0]["value"]) == max(abs(one["value"]) for one in some)
        for one in some:
            part = data["excerpts"][one["excerpt"]]
            clip = data["clips"][part["clip"]]
            whole = clip_table.samples(heard.path[clip["name"]])
            sound, _ = soundfile.read(io.BytesIO(base64.b64decode(part["sound"])), dtype="float32")
            assert len(sound) == 2 * AROUND * 320 and part["seconds"] == pytest.approx(2.0)
            assert clip["speaker"] == heard.speaker[clip["name"]] and clip["words"][0] == [0, 1.0, "wort"]
            first = round(part["first"] * 16_000)
            assert first % 320 == 0
            padded = np.pad(whole, (40_000, 40_000))[40_000 + first :][: len(sound)]
            assert np.corrcoef(padded, sound)[0, 1] > 0.8, "the right place of the right clip"
            trace = np.frombuffer(base64.b64decode(one["trace"]), np.int8) * one["most"] / 127
            assert trace[AROUND] == pytest.approx(one["value"], abs=one["most"] / 100), "the peak is in the middle"
            assert len(trace) == 2 * AROUND + 1
            middle = pd.Series(heard.index).eq(clip["name"]).idxmax(), part["first"] + part["seconds"] / 2
            rows, values = drawn.index.activations(int(number))
            there = drawn._table("", rows, values)
            here = there[(there["clip"] == middle[0]) & (there.value.sub(one["value"]).abs() < 1e-4)]
            assert (here.seconds - middle[1]).abs().min() < 1e-6, "the moment is that on which its frame is centred"
            near = there[(there["clip"] == middle[0]) & ((there.seconds - middle[1]).abs() < AROUND * 0.02 + 0.01)]
            assert len(near) == (trace != 0).sum() or one["most"] > 127 * near.value.abs().min()


def test_a_table_is_gathered_of_each_feature(made):
    run = made(expansion=1)
    drawn = feature_index.examples_in(run, 0, SITE)
    data = held(dashboards.page(run, 0, SITE, most=1000, each=1))
    alive = np.flatnonzero(drawn.index.rates > 0)
    assert [one["feature"] for one in data["features"]] == alive.tolist()
    for one in data["features"]:
        assert one["rate"] == pytest.approx(drawn.index.rates[one["feature"]], rel=1e-3)
        assert sum(one["histogram"]) == drawn.index.count(one["feature"])
        assert one["high"] == pytest.approx(drawn.index.maxima[one["feature"]], rel=1e-3)
        assert one["by"] == "draft" and one["label"] == annotations.draft(one)
        if "f1" in one:
            assert one["f1"] > one["chance"] and one["phones"][0] == [one["phone"], pytest.approx(one["f1"], abs=1e-3)]
            assert one["stage"] in ("onset", "steady", "offset")
    fewer = held(dashboards.page(run, 0, SITE, most=3, each=1))
    assert len(fewer["features"]) == 3 and {one["feature"] for one in fewer["features"]} <= set(alive)
    asked = held(dashboards.page(run, 0, SITE, features=[9, 2, 9], each=1))
    assert [one["feature"] for one in asked["features"]] == [2, 9]
    with pytest.raises(ValueError, match="features: there is no 32; there are 32"):
        dashboards.page(run, 0, SITE, features=[32])


def test_a_planted_phone_is_named(made):
    """Codes that fire on /a/ alone get its name; codes that fire anywhere get none."""
    run = made()
    heard = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    recording = cache.need(pipeline.activations(run, 0))
    known = phone_selectivity.asked(run, heard, recording)
    said = np.zeros(len(known.here), bool)
    said[known.here] = known.frames.names[known.frames.label] == "a"
    codes = np.stack([2.0 * said, np.random.default_rng(0).uniform(size=len(said)) < 0.1], axis=1)

    class Planted:
        features = 2

        def columns(self, first, last):
            return dashboards.sparse_acts.of_chunks([codes[:, first:last]])

    found = dashboards.phone_scores(run, Planted(), heard, recording)
    assert found.phone[0] == "a" and found.f1[0] > 0.99 and 0.6 < found.chance[0] < 0.8
    assert annotations.draft(found.loc[0]).startswith("likely /a/") and annotations.draft(found.loc[1]) == "unclear"


def test_without_phones_there_is_a_page(made):
    data = held(dashboards.page(made(told=False), 0, SITE, most=2, each=2))
    assert all("phone" not in one and one["label"] == "unclear" for one in data["features"])
    assert all(clip["words"] == [] and clip["text"] for clip in data["clips"])


def test_notes_outlive_the_report_and_stay_with_their_dictionary(made):
    run = made()
    kept = dashboards.notes(run, 0, SITE)
    silent = np.flatnonzero(feature_index.examples_in(run, 0, SITE).index.rates == 0)
    noted = int(silent[0]) if len(silent) else 5
    kept.put(annotations.Note(noted, "sound", "<b>hum</b> & “more”", 0.5, evidence="all\nloud"))
    before = kept.path.read_bytes()
    for _ in range(2):
        data = held(dashboards.page(run, 0, SITE, most=2, each=1))
        (one,) = [one for one in data["features"] if one["feature"] == noted]
        assert (one["label"], one["by"], one["category"]) == ("<b>hum</b> & “more”", "note", "sound")
        assert (one["confidence"], one["evidence"]) == (0.5, "all\nloud")
    assert kept.path.read_bytes() == before and kept.path.parent == cache.root() / "labels"
    kept.put(annotations.Note(99_999, "sound", "of no feature"))
    with pytest.raises(ValueError, match=rf"{kept.path.name}: features: there is no 99999; there are [0-9]+"):
        dashboards.page(run, 0, SITE, most=2, each=1)
    other = dashboards.notes(replace(run, k=3), 0, SITE)
    assert other.notes() == {} and other.others() == [kept.path]
    assert dashboards.notes(run, 0, SITE, of="neurons").notes() == {}


def test_what_is_told_goes_before_what_is_computed(made):
    run = made()
    told = pd.DataFrame(
        {"phone": ["ʃ"], "f1": [0.9], "chance": [0.1], "flag": ["loudness"], "energy": [0.75],
         "correlates": [[("energy", 0.75)]]}, index=pd.Index([2], name="feature"),
    )  # fmt: skip
    page = dashboards.page(run, 0, SITE, told, features=[2, 3], each=1)
    two, three = held(page)["features"]
    assert two["label"] == "likely /ʃ/, F1 0.90, chance 0.10, but goes with loudness" and two["flag"] == "loudness"
    assert two["correlates"] == [["energy", 0.75]] and two["more"] == [["energy", 0.75]]
    assert "flag" not in three and "phone" not in three
    assert dashboards.page(run, 0, SITE, told.reset_index(), features=[2, 3], each=1) == page
    with pytest.raises(ValueError, match="told: feature 2 is there twice"):
        dashboards.page(run, 0, SITE, pd.concat([told, told]), features=[2])
    shown = BeautifulSoup(page._repr_html_(), "html.parser")
    assert shown.a["href"] == page.path.name and "2 features" in shown.get_text()


def test_neurons_have_two_sides(made):
    run = made()
    cache.make(feature_index.codes(run, 0, SITE, of="neurons"))
    page = dashboards.page(run, 0, SITE, most=3, each=2, of="neurons")
    assert page.path.name == f"features-{SITE}-neurons.html"
    assert all(one["low"] < 0 < one["high"] for one in held(page)["features"])


def test_it_needs_the_index(made):
    run = made()
    with pytest.raises(cache.NotMade, match="index of the neurons"):
        dashboards.page(run, 0, SITE, of="neurons")
