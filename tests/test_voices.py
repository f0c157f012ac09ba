"""Voices asked of every feature: frames of speech by hand; what is planted is found, and lots find nothing."""

import numpy as np
import pandas as pd
import pytest
import torch

from whisper_sae import activations, dictionaries, effects, meaning, recipes, sae, speech, store, voices

SITE = "encoder.1.resid"


@pytest.fixture
def made(small_whisper, corpus, run_for, data):
    """A run with its clips, activations and dictionary, the table of clips, and its step of `of_features`."""

    def prepare(of="dictionary", **fields):
        run = run_for(small_whisper, corpus(voices=14, clips=3), tokens=2_000, **fields)
        clips, acts = store.make(recipes.clips(run, 0)), store.make(recipes.activations(run, 0))
        trained = store.make(dictionaries.dictionary(run, 0, SITE))
        store.make(meaning.codes(run, 0, SITE, of))
        return run, recipes.table(run, clips), acts, trained, store.make(voices.of_features(run, 0, SITE, of))

    return prepare


@pytest.mark.parametrize("windows", ["clip", "packed"])
def test_a_clip_is_what_its_frames_of_speech_say(made, windows, monkeypatch):
    monkeypatch.setattr(voices, "FIRINGS", 300)  # several blocks
    _, _, acts, trained, step = made(windows=windows)
    held, coder = activations.Activations(acts.path), sae.load(trained.path)
    of = acts.table("windows.csv")["clip"].to_numpy()
    told, rate, when = step.table("clips.csv"), step.array("rate.npy"), step.array("when_firing.npy")
    assert len(told) and np.isnan(when).any() and step.facts["sides"] == coder.d_sae == rate.shape[1]
    for row in range(0, len(told), 5):
        parts = [
            held.window(SITE, n)[held.kinds[n][held.kinds[n] > 0] == speech.SPEECH]
            for n in np.flatnonzero(of == told["clip"][row])
        ]
        with torch.no_grad():
            f = coder.encode(torch.from_numpy(np.concatenate(parts).astype(np.float32))).numpy()
        assert told.frames[row] == len(f)
        np.testing.assert_allclose(rate[row], (f > 0).mean(axis=0), atol=1.01 / len(f))
        fires = (f > 0).any(axis=0) & (rate[row] > 0)
        strong = f.sum(axis=0)[fires] / (f > 0).sum(axis=0)[fires]
        assert np.median(np.abs(when[row][fires] / strong - 1)) < 5e-3
        np.testing.assert_allclose(voices.values(step, "mean")[row], f.mean(axis=0), rtol=1e-2, atol=1e-2)


def test_speakers_are_in_one_order_everywhere(made):
    _, heard, _, _, step = made()
    heard = heard.assign(level=np.arange(len(heard), dtype=float))
    cast = voices.cast(step, heard)
    told = voices.covariates(step, heard)
    assert list(cast.labels) == ["gender"] and list(cast.labels.index) == list(told.index) == sorted(set(heard.speaker))
    assert told.level.to_numpy() == pytest.approx(heard.groupby("speaker")["level"].mean().to_numpy())
    assert voices.answerable(cast, "gender") and voices.groups_of(cast, "gender") == ("female", "male")


def test_the_probes_read_every_input_and_never_meet_who_they_are_asked_about(made):
    run, heard, _, _, _ = made()
    for of in ("random dictionary", "principal directions"):
        store.make(meaning.codes(run, 0, SITE, of)), store.make(voices.of_features(run, 0, SITE, of))
    read = store.make(voices.probed(run, 0, SITE, {"gender": []})).table("read.csv")
    assert set(read.input) == {"features", "random", "directions"} and read.right.between(0, 1).all()
    assert (read.groupby(["input", "width"]).speaker.nunique() == 14).all()
    assert dict(zip(read.speaker, read.told, strict=True)) == dict(zip(heard.speaker, heard.gender, strict=True))
    table = voices.compared(read, ["label", "input", "width"])
    best = table[(table.input == "directions")].balanced.item()
    assert best > 0.7  # the hums of women and men differ in pitch
    simple = store.make(recipes.label_probe(run, 0, {"gender": []}))
    cast = voices.cast(store.make(voices.of_features(run, 0, SITE)), heard)
    every = voices.everything(store.make(voices.probed(run, 0, SITE, {"gender": []})), simple, SITE, cast)
    assert {"all features", "log-mel", "activations"} <= set(every.input) and every.told.isin(["female", "male"]).all()


# ------------------------------------------------------------------------------------------ without a model


def people(n=24, features=60, planted=0.0, seed=0):
    """2 n speakers, women and men in turn in three accents; feature 0 is `planted` SDs higher in women."""
    rng = np.random.default_rng(seed)
    labels = pd.DataFrame({"gender": ["female", "male"] * n, "accent": np.repeat(["a", "b", "c"], 2 * n // 3)})
    x = rng.normal(size=(2 * n, features)) + 5
    x[:, 0] += planted * (labels.gender == "female")
    return effects.Voices(x, labels, np.ones(2 * n, int), 0)


@pytest.mark.parametrize("strata", ["", "accent"])
def test_what_is_planted_is_found_first_and_a_lot_finds_nothing(strata):
    found = voices.two(people(planted=2.0), "gender", strata, deals=4_000)
    assert found.table.feature[0] == 0 and found.chance.found[0] and found.table.d[0] > 1
    assert found.table.low.isna().all() == bool(strata)
    row = voices.counted(found, "gender", "when_firing")
    assert row["found"] == found.chance.found.sum() and row["measure"] == "when firing"
    lot = voices.two(people(), "gender", strata, deals=4_000)
    assert lot.chance.found.sum() == 0 and not lot.chance.beyond.any()


def test_one_feature_alone_can_be_found_among_many():
    chance = voices.two(people(features=600, planted=3.0), "gender").chance
    assert chance.deals >= 20 * 600 and chance.found[0] and chance.least_found == 1


def test_few_speakers_are_refused_with_the_reason():
    cast = people(n=9)
    cast.labels.loc[cast.labels.index[cast.labels.gender == "male"][5:], "gender"] = ""
    assert not voices.answerable(cast, "gender")
    with pytest.raises(ValueError):
        voices.two(cast, "gender")


def test_a_feature_with_few_values_is_not_asked():
    cast = people()
    cast.means[10:, 3] = np.nan  # five of each are left
    cast.means[:, 4] = 7
    assert np.flatnonzero(~voices.asked(cast, "gender")).tolist() == [3, 4]
    assert not set(voices.two(cast, "gender", deals=500).table.feature) & {3, 4}


@pytest.mark.parametrize("strata", ["", "gender"])
def test_groups_that_differ_are_found_and_others_are_as_chance_has_it(strata):
    cast = people()
    cast.means[:, 5] += 2.0 * (cast.labels.accent == "b")
    found = voices.many(cast, "accent", strata, deals=200)
    assert found.table.feature[0] == 5 and found.table.q[0] < 0.01 and found.table.eta_squared[0] > found.threshold
    assert found.by_chance.mean() == pytest.approx(0.05 * 60, abs=1)
    assert (found.table.q[1:] > 0.05).all()


def test_what_a_number_tells_vanishes_when_it_is_held_and_what_is_true_stays():
    cast, rng = people(planted=2.5, n=48), np.random.default_rng(1)
    mic = np.repeat([0, 1], 48)[rng.permutation(96)]
    level = mic * 7 + rng.normal(size=96) * 2
    cast.means[:, 1] += 0.5 * level
    cast.labels["mic"] = np.where(mic, "near", "far")
    told = pd.DataFrame({"level": level, "length": rng.normal(size=96), "mic": mic.astype(float)})
    mics, genders = (voices.held(cast, name, told).set_index("held") for name in ("mic", "gender"))
    assert mics.found_before["level"] == 1 and mics.found["level"] == 0 and mics.found["length"] == 1
    assert genders.found["level"] == 1 and genders.left["level"] > 0.9 > 0.5 > mics.left["level"]
    assert mics.left["mic"] == 0 and np.isnan(mics.found["mic"])  # it is the label


def test_labels_are_of_speakers_not_of_clips_nor_numbers():
    heard = pd.DataFrame({
        "speaker": ["a", "a", "b", "b", "c", "c", "d", "d", ""], "text": list("abcdefghi"), "gender": [*"ffmmffmm", ""],
        "age": ["30", "30", "40", "40", "30", "30", "40", "40", ""], "mood": ["glad", "sad"] * 4 + [""],
        "room": ["one"] * 8 + ["two"], "accent": [*"xxxxyyyy", "z"], "id": list("abcdefghi"),
    })  # fmt: skip
    assert voices.labels_of(heard) == ["gender", "accent"]
    cast = people()
    assert voices.crossed(cast, "gender", "accent") and not voices.crossed(cast, "gender", "gender")


def test_the_few_are_chosen_without_those_who_are_asked_about():
    """Of many features of noise some tell any label of all speakers; they must not help with speakers unheard."""
    rng = np.random.default_rng(3)
    speaker = np.repeat([f"s{n:02d}" for n in range(24)], 4)
    y = np.where(np.repeat(np.arange(24) % 2, 4) == 0, "f", "m")
    x = rng.normal(size=(24, 2_000))[np.repeat(np.arange(24), 4)] + 0.1 * rng.normal(size=(96, 2_000))
    assert voices.few(x, y, speaker, counts=(4,))[4].mean() < 0.75  # chosen among all, it is above 0.9
    x[:, 7] += 3.0 * (y == "f")
    right = voices.few(x, y, speaker, counts=(1, 5_000))
    assert list(right) == [1] and right[1].mean() > 0.85
    with pytest.raises(ValueError, match="a single speaker"):
        voices.few(x[:8], ["f"] * 4 + ["m"] * 4, speaker[:8])


def test_balanced_accuracy_is_the_mean_over_labels_with_an_interval_that_covers():
    read = pd.DataFrame({"told": ["f"] * 2 + ["m"] * 4, "right": [1.0, 0.8, 0.2, 0.4, 0.2, 0.4]})
    middle, low, high = voices.balanced(read)
    assert middle == pytest.approx((0.9 + 0.3) / 2) and 0 <= low < middle < high <= 1
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        each = pd.DataFrame({"told": ["f"] * 8 + ["m"] * 20})
        each["right"] = rng.beta(3, 2, 28)
        _, low, high = voices.balanced(each)
        covered += low < 0.6 < high
    assert 0.91 < covered / 300 < 0.99
    assert voices.balanced(read.assign(right=1.0)) == (1.0, 1.0, 1.0)


def test_pairs_are_one_of_each_group_and_say_it_equally_strongly():
    class Shelf:
        def loudest(self, feature, n, per_speaker):
            assert per_speaker == 1
            return pd.DataFrame({"clip": range(6), "speaker": list("abcdef"), "value": [9.0, 5.1, 2.0, 5.0, 4.0, 1.9]})

    heard = pd.DataFrame({"gender": ["female"] * 3 + ["male"] * 3})
    found = voices.alike(Shelf(), heard, 0, "gender", ("female", "male"), 1)
    assert found.kind.tolist() == ["female b", "male d"] and found.value.tolist() == [5.1, 5.0]
    assert len(voices.alike(Shelf(), heard, 0, "gender", ("female", "male"), 9)) % 2 == 0
    assert voices.alike(Shelf(), heard.assign(gender="female"), 0, "gender", ("female", "male")).empty


def test_tables_to_read_have_every_number_in_its_place():
    scores = pd.DataFrame({"label": ["g", "g", "a"], "input": ["x", "y", "x"], "balanced": [0.5, 0.75, 0.2]})
    scores = scores.assign(balanced_low=0.1, balanced_high=0.9, chance=[0.5, 0.5, 0.25])
    told = voices.side_by_side(scores).set_index("input")
    assert list(told) == ["g", "a"] and list(told.index) == ["x", "y", "majority"]
    assert told.g["y"] == "75 (10–90)" and told.a["majority"] == "25"
    needed = pd.DataFrame(
        {"d_clips": [0.2] * 4, "clips": [1, 1, 10, 10], "icc": [0.1, 0.3] * 2, "speakers": [9, 9, 4, 6]}
    )
    assert voices.by_design(needed).iloc[0].to_dict() == {
        "d of clips": 0.2, "1 clip": 9, "10 clips, ICC 0.1": 4, "10 clips, ICC 0.3": 6,
    }  # fmt: skip
