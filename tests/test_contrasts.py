"""Groups compared in every feature: what is planted is found, lots find nothing, and what something else tells goes."""

import numpy as np
import pandas as pd
import pytest
from speakers import people

from whisper_sae.experiments import speaker_effects, speakers
from whisper_sae.stats import power


@pytest.mark.parametrize("strata", ["", "accent"])
def test_what_is_planted_is_found_first_and_a_lot_finds_nothing(strata):
    found = speaker_effects.two(people(planted=2.0), "gender", strata, deals=4_000)
    assert found.table.feature[0] == 0 and found.chance.found[0] and found.table.d[0] > 1
    assert found.table.low.notna().all()
    row = speaker_effects.counted(found, "gender", "when_firing")
    assert row["found"] == found.chance.found.sum() and row["measure"] == "when firing"
    lot = speaker_effects.two(people(), "gender", strata, deals=4_000)
    assert lot.chance.found.sum() == 0 and not lot.chance.beyond.any()


def test_one_feature_alone_can_be_found_among_many():
    chance = speaker_effects.two(people(features=600, planted=3.0), "gender").chance
    assert chance.deals >= 20 * 600 and chance.found[0] and chance.least_found == 1


def test_few_speakers_are_refused_with_the_reason():
    cast = people(n=9)
    cast.labels.loc[cast.labels.index[cast.labels.gender == "male"][5:], "gender"] = ""
    assert not speakers.answerable(cast, "gender")
    with pytest.raises(ValueError):
        speaker_effects.two(cast, "gender")


def test_a_feature_with_few_values_is_not_asked():
    cast = people()
    cast.means[10:, 3] = np.nan  # five of each are left
    cast.means[:, 4] = 7
    cast.means[:, 5], cast.means[0, 5] = 7, 8  # one speaker is another: dealt alone, d would be infinite
    assert np.flatnonzero(~speakers.asked(cast, "gender")).tolist() == [3, 4, 5]
    found = speaker_effects.two(cast, "gender", deals=500)
    assert not set(found.table.feature) & {3, 4, 5} and found.chance.threshold < 3


@pytest.mark.parametrize("strata", ["", "gender"])
def test_groups_that_differ_are_found_and_others_are_as_chance_has_it(strata):
    cast = people()
    cast.means[:, 5] += 2.0 * (cast.labels.accent == "b")
    found = speaker_effects.many(cast, "accent", strata, deals=8_000)
    assert (
        found.table.feature[0] == 5 and found.table.q[0] < 0.02 and found.table.eta_squared[0] > found.chance.threshold
    )
    assert found.chance.by_chance.mean() == pytest.approx(0.05 * 60, abs=1)
    assert (found.table.q[1:] > 0.05).all()


def confounded():
    """96 speakers: women have more of feature 0, accent b of 5, and a near microphone, louder by 7 dB, more of 1."""
    cast, rng = people(planted=2.5, n=48), np.random.default_rng(1)
    mic = np.repeat([0, 1], 48)[rng.permutation(96)]
    level = mic * 7 + rng.normal(size=96) * 2
    cast.means[:, 1] += 0.5 * level
    cast.means[:, 5] += 2.0 * (cast.labels.accent == "b")
    cast.labels["mic"] = np.where(mic, "near", "far")
    return cast, pd.DataFrame({"level": level, "length": rng.normal(size=96), "same": mic.astype(float)})


def test_what_a_number_tells_vanishes_when_it_is_held_and_what_is_true_stays():
    cast, told = confounded()
    table = speaker_effects.held(cast, ["gender", "mic", "accent"], told, deals=2_000)
    mics, genders, accents = (
        table[table.label == name].set_index(["held", "way"]) for name in table.label.unique()[[1, 0, 2]]
    )
    assert mics.beyond["nothing", ""] == mics.beyond["length", "regression"] == 1
    assert mics.beyond["level", "regression"] == 0 and mics.left["level", "regression"] < 0.5
    assert (
        genders.beyond["nothing", ""]
        == genders.beyond["level", "regression"]
        == genders.beyond["level", "matching"]
        == 1
    )
    assert genders.left["level", "regression"] > 0.9 and genders.n["level", "matching"] < 96
    assert accents.beyond["level", "regression"] == 1 and ("level", "matching") not in accents.index
    assert mics.own["level", "regression"] == pytest.approx(3.5, abs=0.6) and genders.own["level", "regression"] < 1
    assert "nothing is left" in mics.why["same", "regression"] and "0 pairs" in mics.why["same", "matching"]
    assert "in 8 ways" in mics.why["level", "matching"]  # three pairs are alike
    assert (table.why == "").sum() == len(table) - 3


def test_every_two_groups_are_compared_and_one_feature_shown():
    cast = people()
    cast.means[:, 5] += 3.0 * (cast.labels.accent == "b")
    table = speaker_effects.pairs(cast, "accent", 5, deals=1_000)
    assert len(table) == 3 and set(table.n_one) == {16} and table.beyond.tolist() == [1, 1, 0]
    assert table.one[0] == "a" and table.d[0] < -2 and table.low[0] < table.d[0] < table.high[0]
    assert table.visible[0] == pytest.approx(power.detectable(16, 16, power.level_of(table.threshold[0], 16, 16)))
    few = people()
    few.labels.loc[few.labels.index[few.labels.accent == "c"][5:], "accent"] = ""
    assert speaker_effects.pairs(few, "accent", 5, deals=1_000)[["one", "other"]].to_numpy().tolist() == [["a", "b"]]
    assert speaker_effects.many(few, "accent", deals=200).few == ("c",)
    with pytest.raises(ValueError, match="gender: 0 groups have 6 speakers or more"):
        speaker_effects.many(people(n=3), "gender")


def test_crossed_labels_say_where_they_have_too_few():
    cast = people(planted=3.0)
    table = speaker_effects.crossings(cast, "gender", "accent", 0).set_index("accent")
    assert table.female.tolist() == [8, 8, 8] and (table.low > 0).all() and (table.why == "").all()
    cast.labels.loc[cast.labels.index[(cast.labels.accent == "a") & (cast.labels.gender == "male")][5:], "gender"] = ""
    table = speaker_effects.crossings(cast, "gender", "accent", 0).set_index("accent")
    assert "5 speakers are 'male'" in table.why["a"] and np.isnan(table.low["a"]) and table.d["a"] > 1
    found = speaker_effects.two(people(planted=3.0), "gender", "accent", deals=500).table
    assert found.interaction.between(0, 1).all() and found.low[0] < found.d[0] < found.high[0]


def test_a_label_of_many_groups_has_partial_eta_squared_with_its_interval():
    cast = people()
    cast.means[:, 5] += 2.0 * (cast.labels.accent == "b")
    table = speaker_effects.many(cast, "accent", deals=300).table
    assert ((table.low <= table.eta_squared) & (table.eta_squared <= table.high)).all() and (table.n == 48).all()
    assert table.low[0] > 0 and (table.omega_squared < table.eta_squared).all()
    assert speakers.crossed(cast, "accent", "gender")


def test_the_power_of_a_corpus_is_that_of_its_own_threshold():
    found = speaker_effects.two(people(), "gender", deals=1_000)
    seen = speaker_effects.seen(found)
    (one, all_), strict = list(seen.least.values())[:2], power.level_of(found.chance.threshold, 24, 24)
    assert one == pytest.approx(power.detectable(24, 24)) and all_ == pytest.approx(power.detectable(24, 24, strict))
    assert seen.level == strict and list(seen.curves) == list(seen.least) and "6 + 6" in list(seen.least)[2]
    sizes = speaker_effects.sample_sizes(seen, 0.1)
    assert list(sizes) == ["d of clips", "1 clip", "10 clips, ICC 0.1", "10 clips, ICC 0.3"]
    assert sizes["1 clip"][0] == power.speakers_needed(0.2, strict)


def test_pairs_as_a_square():
    names, d = speaker_effects.matrix(pd.DataFrame({"one": ["a", "a"], "other": ["b", "c"], "d": [1.0, -2.0]}))
    assert names == ("a", "b", "c") and d.tolist() == [[0, 1, -2], [-1, 0, 0], [2, 0, 0]]


# ------------------------------------------------------------------------------ the foremost, on other speakers


def of_300(speakers: int, planted: float, seed: int):
    """That many speakers, half of them women, and 300 features, of which feature 0 is `planted` SDs higher in women."""
    cast = people(n=3 * (speakers // 6 + 1), features=300, planted=planted, seed=seed)
    return speaker_effects._of(cast, np.arange(len(cast.means)) < speakers)


def test_the_greatest_d_of_nothing_is_nothing_on_other_speakers():
    first = pd.concat(
        [speaker_effects.foremost(of_300(40, 0, s), "gender", seed=s, splits=6).head(1) for s in range(16)]
    )
    assert (first.d > 0.6).all()
    assert abs(first.other.mean()) < 4 * first.other.std() / 4
    assert (first.low < 0).all() and (first.high > 0).all()


def test_a_planted_d_stays_on_other_speakers():
    """Halves of 40 speakers choose it always; the standard error of the mean of ten corpora is 0.08."""
    first = pd.concat(
        [speaker_effects.foremost(of_300(80, 2, s), "gender", seed=s, splits=6).head(1) for s in range(10)]
    )
    assert (first.feature == 0).all() and (first.group == "female").all() and (first.again == 1).all()
    assert first.other.mean() == pytest.approx(2, abs=0.32)


def test_foremost_features_are_those_of_all_speakers():
    cast = people(planted=2.0)
    table, every = (
        speaker_effects.foremost(cast, "gender", most=5),
        speaker_effects.two(cast, "gender", deals=200).table,
    )
    assert table.feature.tolist() == every.feature[:5].tolist()
    np.testing.assert_allclose(table.d, every.d[:5].abs())
    assert table.equals(speaker_effects.foremost(cast, "gender", most=5)) and table.n_one[0] == table.n_other[0] == 24
    few = speaker_effects._of(cast, np.arange(48) < 23)
    with pytest.raises(ValueError, match="gender: half of 12 female and 11 male speakers are fewer than 6 of a group"):
        speaker_effects.foremost(few, "gender")


def test_halves_have_as_many_of_every_group_and_corpus():
    rng = np.random.default_rng(0)
    told, by = rng.choice(["f", "m", ""], 101), rng.choice(["x", "y", "z"], 101)
    half = speaker_effects._halves(told, by, rng)
    assert ((half == -1) == (told == "")).all()
    for name in "fm":
        assert abs((half[told == name] == 0).sum() - (half[told == name] == 1).sum()) <= 1
        for one in "xyz":
            mine = half[(told == name) & (by == one)]
            assert abs((mine == 0).sum() - (mine == 1).sum()) <= 1


def test_corpora_are_held_fixed_on_other_speakers_too():
    """A feature that knows the corpus, in corpora of unlike shares of women, is not the foremost."""
    cast = people(n=24, features=20)
    corpus = np.where(np.arange(48) % 2 == (np.arange(48) % 16 > 13), "one", "two")
    cast.means[:, 3] += 9 * (corpus == "one")
    apart = cast._replace(corpus=corpus)
    one = speaker_effects.foremost(cast, "gender")
    assert one.feature[0] == 3 and one.other[0] > 1.2 and one.again[0] == 1
    assert speaker_effects.foremost(apart, "gender").other[0] < 0.6
