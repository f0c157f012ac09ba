"""Dictionaries are compared by features that were chosen on other speakers, with intervals over speakers."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from whisper_sae.features import phone_detection, sparse_acts


def world(seed=0, *, speakers=12, clean=0.8, features=12):
    """A dictionary of chance but for features 0, 1 and 2, which follow s, t and i: with probability `clean`."""
    rng = np.random.default_rng(seed)
    rows = speakers * 300
    label = np.repeat(rng.choice(list("stie"), rows // 5), 5)
    dense = rng.exponential(0.5, size=(rows, features)) * (rng.random((rows, features)) < 0.1)
    for feature, name in enumerate("sti"):
        follows = (label == name) & (rng.random(rows) < clean)
        dense[:, feature] = np.where(follows, rng.uniform(2, 3, rows), dense[:, feature])
    speaker, clip = np.repeat(np.arange(speakers), 300), np.repeat(np.arange(rows // 100), 100)
    return sparse_acts.known(sparse_acts.of_chunks([dense]), label, speaker, clip)


def test_the_features_that_were_planted_are_chosen():
    made, frames = world()
    choosing = frames.speaker < 6
    found = phone_detection.dictionary_score(made, frames, choosing)
    table = found.table.set_index("label")
    assert table.feature[["s", "t", "i"]].tolist() == [0, 1, 2] and table.counted.all()
    assert (table.f1[["s", "t", "i"]] > 0.8).all() and table.f1["e"] < 0.45
    assert found.f1 == pytest.approx(table.f1.mean()) and found.low < found.f1 < found.high
    assert ((table.f1_low <= table.f1) & (table.f1 <= table.f1_high)).all()
    dense = made.toarray()[~choosing]
    for name, row in table.iterrows():
        there = frames.names[frames.label[~choosing]] == name
        assert row.f1 == pytest.approx(f1_score(there, dense[:, row.feature] >= row.threshold))
        assert row.chance == pytest.approx(f1_score(there, np.ones(len(there))))


def test_features_may_come_a_few_at_a_time():
    made, frames = world()
    whole = phone_detection.dictionary_score(made, frames, frames.speaker < 6)
    parts = phone_detection.dictionary_score(
        (inner for _, inner in sparse_acts.blocks(made, 500)), frames, frames.speaker < 6
    )
    assert parts.table.equals(whole.table) and (parts.draws == whole.draws).all()


def test_a_better_dictionary_scores_higher_than_a_larger_one():
    """Six hundred features of chance do not make up for two good ones."""
    good, frames = world(clean=0.7)
    poor, other = world(clean=0.5, features=600)
    assert (frames.label == other.label).all()
    one, two = (phone_detection.dictionary_score(made, frames, frames.speaker < 6) for made in (good, poor))
    mean, low, high = phone_detection.difference(one, two)
    assert 0.03 < low < mean < high and mean == pytest.approx(one.f1 - two.f1)
    assert high - low < (one.high - one.low) + (two.high - two.low)
    assert phone_detection.difference(one, one) == (0, 0, 0)


def test_signed_inputs_go_through_the_same_code():
    """A neuron that is down on s is found by its other side."""
    rng = np.random.default_rng(0)
    label = np.repeat(rng.choice(list("stie"), 480), 5)
    neuron = rng.normal(0, 0.3, (2400, 3)) - 2.0 * (label == "s")[:, None] * [0, 1, 0]
    made = sparse_acts.of_chunks([neuron], both_sides=True)
    made, frames = sparse_acts.known(made, label, np.arange(2400) // 300, np.arange(2400) // 100)
    found = phone_detection.dictionary_score(made, frames, sparse_acts.half_of(frames.speaker)).table.set_index("label")
    assert found.feature["s"] == 3 + 1 and found.f1["s"] > 0.95


def test_labels_that_a_side_lacks_are_not_counted():
    made, frames = world()
    e, t = (frames.names.tolist().index(name) for name in "et")
    choosing = frames.speaker < 6
    keep = ~((frames.label == e) & choosing) & ~((frames.label == t) & ~choosing)
    made, frames = sparse_acts.part(made, frames, keep)
    found = phone_detection.dictionary_score(made, frames, choosing[keep])
    table = found.table.set_index("label")
    assert table.counted.to_dict() == {"e": False, "i": True, "s": True, "t": False}
    assert np.isnan(table.f1["t"]) and table.f1["e"] == 0 and table.feature["e"] == -1
    assert found.f1 == pytest.approx(table.f1[["i", "s"]].mean())


def test_of_five_speakers_no_interval_is_given():
    made, frames = world(speakers=11)
    five, six = (phone_detection.dictionary_score(made, frames, frames.speaker < n) for n in (6, 5))
    assert np.isnan([five.low, five.high, *five.draws]).all() and five.table.f1_low.isna().all() and five.f1 > 0.6
    assert np.isfinite([six.low, six.high, *six.draws]).all() and six.table.f1_low.notna().all()
    assert np.isnan(phone_detection.difference(five, five)[1:]).all() and phone_detection.difference(five, five)[0] == 0


def test_one_speaker_or_nobody_to_ask():
    made, frames = world(speakers=2)
    one = phone_detection.dictionary_score(made, frames, frames.speaker == 0)
    assert one.f1 > 0.6 and np.isnan(one.low) and np.isnan(one.high)
    none = phone_detection.dictionary_score(made, frames, np.ones(len(frames.label), bool))
    assert np.isnan([none.f1, none.low, none.high]).all() and not none.table.counted.any()
    assert none.table.f1_chosen.max() > 0.8
    with pytest.raises(ValueError, match="labels: the two scores are not of the same ones"):
        phone_detection.difference(one, none)


def test_dead_dictionaries_score_nothing():
    made, frames = world()
    dead = sparse_acts.of_chunks([np.zeros(made.shape)])
    found = phone_detection.dictionary_score(dead, frames, frames.speaker < 6)
    assert np.isnan(found.f1) and (found.table.feature == -1).all() and (found.table.f1 == 0).all()


def test_the_interval_is_over_speakers():
    """A feature that hears only half of the speakers is less certain than one that hears half of all frames."""
    rng = np.random.default_rng(0)
    made, frames = world(clean=0)
    there = frames.label == frames.names.tolist().index("s")
    dense = np.stack([there & (frames.speaker % 2 == 0), there & (rng.random(len(there)) < 0.5)], axis=1)
    made = sparse_acts.of_chunks([dense])
    s = frames.names.tolist().index("s")
    f1, low, high = phone_detection.f1_by_speakers(made, frames, [0, 1], [s, s], [0.5, 0.5])
    assert f1 == pytest.approx([2 / 3, 2 / 3], abs=0.04)
    assert high[0] - low[0] > 4 * (high[1] - low[1])
    assert (low < f1).all() and (f1 < high).all()


def test_a_phone_of_one_speaker_does_not_move_the_interval():
    """Nobody hears it; whether its speaker is drawn must not decide whether it counts."""
    made, frames = world(clean=0.8)
    e = frames.names.tolist().index("e")
    keep = (frames.label != e) | (frames.speaker < 7)
    made, frames = sparse_acts.part(made, frames, keep)
    found = phone_detection.dictionary_score(made, frames, frames.speaker < 6)
    assert found.table.counted.all()
    assert found.f1 - 0.06 < found.low < found.f1 < found.high < found.f1 + 0.06


def test_intervals_hold_the_truth():
    """95 % intervals of many worlds: most have the F1 that a great many speakers give."""
    made, frames = world(99, speakers=200, clean=0.6, features=4)
    s = frames.names.tolist().index("s")
    truth, _, _ = phone_detection.f1_by_speakers(made, frames, [0], [s], [1.9])
    inside = 0
    for seed in range(40):
        made, frames = world(seed, speakers=12, clean=0.6, features=4)
        _, low, high = phone_detection.f1_by_speakers(made, frames, [0], [s], [1.9], draws=400)
        inside += low[0] <= truth[0] <= high[0]
    assert 33 <= inside <= 40


def test_on_all_frames_false_alarms_in_pauses_count():
    """Feature 0 hears s, and fires in every second frame of pauses as well; edges belong to a phone, and are not
    counted among its frames."""
    made, frames = world(clean=1.0)
    s = frames.names.tolist().index("s")
    n = len(frames.label)
    dense = np.zeros((2 * n, 1))
    dense[:n, 0] = made.toarray()[:, 0]
    dense[n::2, 0] = 9.0
    whole = sparse_acts.Frames(
        np.concatenate([frames.label, np.full(n, len(frames.names))]), frames.names,
        np.tile(frames.speaker, 2), np.tile(frames.clip, 2),
    )  # fmt: skip
    here = np.arange(2 * n) < n
    every = whole._replace(label=np.where(here, whole.label, 0))
    scored = here & (whole.speaker >= 6)
    asked = whole._replace(label=np.where(whole.speaker >= 6, whole.label, -1))
    found = phone_detection.dictionary_score(
        sparse_acts.of_chunks([dense]), every, here & (whole.speaker < 6), scored=scored, everywhere=asked
    )
    row = found.table.set_index("label").loc["s"]
    fires = dense[:, 0] >= row.threshold
    mask = whole.speaker >= 6
    assert row.f1 == pytest.approx(f1_score(whole.label[scored] == s, fires[scored]))
    assert row.f1_all == pytest.approx(f1_score(whole.label[mask] == s, fires[mask])) and row.f1_all < row.f1 - 0.1
    assert row.f1_all_low <= row.f1_all <= row.f1_all_high
    counted = found.table[found.table.counted]
    assert found.everywhere[0] == pytest.approx(counted.f1_all.mean()) and found.speakers == 6
    table = phone_detection.beside({"one": found, "same": found})
    assert (table.f1_all == found.everywhere[0]).all() and (table.all_low <= table.f1_all).all()


def test_a_phone_of_few_speakers_has_no_interval_of_its_own():
    made, frames = world()
    e = frames.names.tolist().index("e")
    keep = (frames.label != e) | (frames.speaker < 6 + 5)
    made, frames = sparse_acts.part(made, frames, keep)
    table = phone_detection.dictionary_score(made, frames, frames.speaker < 6).table.set_index("label")
    assert np.isnan([table.f1_low["e"], table.f1_high["e"]]).all() and table.f1_low.notna().sum() == 3
