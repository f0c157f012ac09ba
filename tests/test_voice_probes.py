"""What is read off voices that a probe never met, and how the tables say it."""

import numpy as np
import pandas as pd
import pytest

from whisper_sae import cache
from whisper_sae.experiments import feature_index, pipeline, sae_comparison, sanity_checks, speaker_probes, speakers

SITE = "encoder.1.resid"


def test_the_probes_read_every_input_and_never_meet_who_they_are_asked_about(small_whisper, corpus, run_for, data):
    run = run_for(small_whisper, corpus(voices=14, clips=2), tokens=2_000)
    heard = pipeline.table(run, cache.make(pipeline.clips(run, 0)))
    cache.make(pipeline.activations(run, 0)), cache.make(sae_comparison.dictionary(run, 0, SITE))
    for of in ("dictionary", "random dictionary", "principal directions"):
        cache.make(feature_index.codes(run, 0, SITE, of)), cache.make(speakers.of_features(run, 0, SITE, of))
    read = cache.make(speaker_probes.probed(run, 0, SITE, {"gender": []})).table("read.csv")
    assert set(read.input) == {"features", "random", "directions"} and read.right.between(0, 1).all()
    assert (read.groupby(["input", "width"]).speaker.nunique() == 14).all()
    assert dict(zip(read.speaker, read.told, strict=True)) == dict(zip(heard.speaker, heard.gender, strict=True))
    table = speaker_probes.compared(read, ["label", "input", "width"])
    best = table[(table.input == "directions")].balanced.item()
    assert best > 0.7  # the hums of women and men differ in pitch
    simple = cache.make(sanity_checks.label_probe(run, 0, {"gender": []}))
    every = speaker_probes.everything(cache.make(speaker_probes.probed(run, 0, SITE, {"gender": []})), simple, SITE)
    assert {"all features", "log-mel", "activations"} <= set(every.input) and every.told.isin(["female", "male"]).all()


def test_the_few_are_chosen_without_those_who_are_asked_about():
    """Of many features of noise some tell any label of all speakers; they must not help with speakers unheard."""
    rng = np.random.default_rng(3)
    speaker = np.repeat([f"s{n:02d}" for n in range(24)], 4)
    y = np.where(np.repeat(np.arange(24) % 2, 4) == 0, "f", "m")
    x = rng.normal(size=(24, 2_000))[np.repeat(np.arange(24), 4)] + 0.1 * rng.normal(size=(96, 2_000))
    assert speaker_probes.few(x, y, speaker, counts=(4,))[4].mean() < 0.75  # chosen among all, it is above 0.9
    x[:, 7] += 3.0 * (y == "f")
    right = speaker_probes.few(x, y, speaker, counts=(1, 5_000))
    assert list(right) == [1] and right[1].mean() > 0.85
    assert speaker_probes.few(x[:16], y[:16], speaker[:16]) == {}  # two of each: of others there is one
    with pytest.raises(ValueError, match="a single speaker"):
        speaker_probes.few(x[:8], ["f"] * 4 + ["m"] * 4, speaker[:8])


def test_balanced_accuracy_is_the_mean_over_labels_with_an_interval_that_covers():
    read = pd.DataFrame({"told": ["f"] * 6 + ["m"] * 8, "right": [1.0, 0.8] * 3 + [0.2, 0.4] * 4})
    middle, low, high = speaker_probes.balanced(read)
    assert middle == pytest.approx((0.9 + 0.3) / 2) and 0 <= low < middle < high <= 1
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        each = pd.DataFrame({"told": ["f"] * 8 + ["m"] * 20})
        each["right"] = rng.beta(3, 2, 28)
        _, low, high = speaker_probes.balanced(each)
        covered += low < 0.6 < high
    assert 0.91 < covered / 300 < 0.99
    assert speaker_probes.balanced(read.assign(right=1.0)) == (1.0, 1.0, 1.0)
    five = speaker_probes.balanced(read[1:])
    assert five[0] == pytest.approx(0.59) and np.isnan(five[1:]).all(), "of five speakers no interval is given"


def test_balanced_accuracy_is_taken_within_strata_and_needs_six_speakers():
    read = pd.DataFrame({"stratum": ["a"] * 10 + ["b"] * 10, "told": ["f"] * 8 + ["m"] * 2 + ["f"] * 2 + ["m"] * 8})
    read["right"] = ((read.stratum == "a") == (read.told == "f")) * 1.0  # says f in a and m in b
    assert read.right.mean() == 0.8 and speaker_probes.balanced(read)[0] == pytest.approx(0.5)
    assert speaker_probes.chance_of(read) == 0.5
    assert np.isnan(speaker_probes.balanced(read.head(5))[1:]).all()


def test_tables_to_read_have_every_number_in_its_place():
    scores = pd.DataFrame({"label": ["g", "g", "a"], "input": ["x", "y", "x"], "balanced": [0.5, 0.75, 0.2]})
    scores = scores.assign(balanced_low=[0.1, 0.1, np.nan], balanced_high=[0.9, 0.9, np.nan], chance=[0.5, 0.5, 0.25])
    told = speaker_probes.side_by_side(scores).set_index("input")
    assert list(told) == ["g", "a"] and list(told.index) == ["x", "y", "majority"]
    assert told.g["y"] == "75 (10–90)" and told.a["majority"] == "25"
    assert told.a["x"] == "20", "without an interval"


def test_what_one_input_tells_more_is_told_speaker_by_speaker():
    rng = np.random.default_rng(0)
    each = pd.DataFrame({"speaker": [f"s{n}" for n in range(40)], "told": ["f", "m"] * 20, "label": "g", "width": 9})
    each["right"] = rng.uniform(0.2, 0.7, 40)
    more = each.assign(input="x", right=each.right + 0.2 + rng.normal(0, 0.01, 40))
    read = pd.concat([more, each.assign(input="y"), each.assign(input="y", width=2, right=0.0)])
    middle, low, high = speaker_probes.better(read, "g", "x", "y")
    assert middle == pytest.approx(0.2, abs=0.01) and 0.19 < low < middle < high < 0.21
    assert speaker_probes.better(read, "g", "y", "x")[1] < -0.19  # not cut off at 0
