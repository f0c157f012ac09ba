"""A forest that has met the speakers reads any label of theirs; one that has not reads what can be heard."""

import numpy as np
import pytest

from whisper_sae.stats import forest


def frames(heard, speakers=12, each=40, seed=0):
    """Frames of voices far apart; with `heard` their gender moves a direction of its own."""
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(speakers), each)
    gender = speaker % 2
    x = 3 * rng.standard_normal((speakers, 10))[speaker] + rng.standard_normal((len(speaker), 10))
    x[:, 0] = rng.standard_normal(len(x)) + 8 * heard * gender
    return x, np.where(gender, "male", "female"), np.char.add("v", speaker.astype(str))


def test_split_by_frame_it_reads_a_label_by_lot_and_of_new_speakers_nothing():
    told = forest.read(*frames(heard=False), trees=30).set_index(["label", "split"])
    assert told.balanced["by lot", "frames"] > 0.9 and told.balanced["as recorded", "frames"] > 0.9
    assert told.low["as recorded", "speakers"] < 0.5 + 0.2 and told.balanced["as recorded", "speakers"] < 0.75
    assert told.frames.tolist() == pytest.approx([96, 480, 96], abs=40) and (told.speakers == 12).all()


def test_what_can_be_heard_is_read_of_new_speakers():
    told = forest.read(*frames(heard=True), trees=30).set_index(["label", "split"])
    assert told.low["as recorded", "speakers"] > 0.9
    assert (told.majority >= 0.5).all() and (told.low <= told.balanced).all() and (told.balanced <= told.high).all()


def test_naming_the_most_frequent_label_is_told_and_is_no_balanced_score():
    x, label, speaker = frames(heard=False, speakers=12)
    few = np.isin(speaker, ["v1", "v3"]) | (label == "female")
    told = forest.read(x[few], label[few], speaker[few], trees=10)
    assert told.majority[1] == pytest.approx(0.75) and told.balanced[1] < 0.75


@pytest.mark.parametrize("label", [["f"] * 8, ["f"] * 6 + ["m"] * 2])
def test_two_speakers_of_each_label_are_needed(label):
    with pytest.raises(ValueError, match="label: two with two speakers of each are needed"):
        forest.read(np.zeros((8, 2)), label, np.repeat(list("abcd"), 2))


def test_a_speaker_of_two_labels_is_no_speaker():
    with pytest.raises(ValueError, match="label: a speaker has two"):
        forest.read(np.zeros((4, 2)), list("fmfm"), list("aabb"))


def test_no_frames_are_told():
    with pytest.raises(ValueError, match="label: two with two speakers"):
        forest.read(np.zeros((0, 2)), [], [])


def test_the_first_frames_of_each_speaker_are_taken():
    speaker = np.array(["", "a", "a", "a", "b", "", "b", "b", "c"])
    assert forest.first(speaker, 5).tolist() == [1, 2, 4, 6, 8]
    assert forest.first(speaker, 100).tolist() == [1, 2, 3, 4, 6, 7, 8]
