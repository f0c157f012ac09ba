"""Words and characters without times: what goes with them is found, what is only early, late or long is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from whisper_sae.features import sparse_acts, word_features
from whisper_sae.stats import null_distribution

# ------------------------------------------------------------------------------------------------- tokens


def test_words_and_characters_are_placed_in_the_text():
    texts = ["The cat.", "a CAT", "the dog's", "it"]
    said = word_features.tokens(texts, least=1)
    assert said.names.tolist() == ["a", "cat", "dog's", "it", "the"] and said.clips == 4
    placed = {(said.names[t], c): w for t, c, w in zip(said.token, said.clip, said.where, strict=True)}
    assert placed["the", 0] == 1.5 / 8 and placed["cat", 0] == 5.5 / 8 and placed["cat", 1] == 3.5 / 5
    assert word_features.tokens(texts, least=2).names.tolist() == ["cat", "the"]
    letters = word_features.tokens(texts, "character", least=1)
    assert "t" not in letters.names or len(set(letters.clip[letters.names[letters.token] == "t"])) < 4
    assert "'" not in letters.names and "c" in letters.names
    with pytest.raises(ValueError, match="unit: 'phone' is not one of word, character"):
        word_features.tokens(texts, "phone")


def test_what_every_clip_has_cannot_be_asked_about():
    assert word_features.tokens(["a b", "a c", "a b"], least=1).names.tolist() == ["b", "c"]
    assert len(word_features.tokens(["", ""], least=1).names) == 0


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=2, max_size=30), st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=20)
def test_texts_are_dealt_among_clips_alike(speakers, alike, seed):
    seconds = np.random.default_rng(seed).uniform(1, 9, len(speakers))
    often = {name for name in speakers if name and speakers.count(name) > 1}
    group = np.array([name if name in often else "" for name in speakers])
    for order in word_features.dealt(speakers, seconds, 3, alike, seed):
        assert sorted(order) == list(range(len(speakers)))
        assert (group[order] == group).all()
        for name in set(group):
            ranks = np.argsort(np.argsort(seconds[group == name]))
            moved = dict(zip(np.flatnonzero(group == name), ranks, strict=True))
            assert all(abs(moved[a] - moved[order[a]]) < 2 * alike for a in moved)


# ------------------------------------------------------------------------------------------------- profiles


def test_a_profile_is_the_highest_in_each_part():
    dense = np.array([[1, 0], [5, 0], [2, 0], [3, 4], [0, 6], [7, 0]], dtype=np.float32)
    clip = np.array([0, 0, 0, 0, 2, 2])
    made = sparse_acts.of_chunks([dense])
    assert word_features.profile(made, clip, 3)[:, 0].tolist() == [[5, 4], [0, 0], [7, 6]]
    parts = word_features.profile(made, clip, 3, bins=2)
    assert parts.tolist() == [[[5, 0], [3, 4]], [[0, 0], [0, 0]], [[0, 6], [7, 0]]]


def test_presence_is_the_auc_over_clips():
    rng = np.random.default_rng(0)
    peaks = rng.integers(0, 3, (40, 1, 5)).astype(np.float32)
    texts = [" ".join(rng.choice(list("abcdef"), rng.integers(1, 5))) for _ in range(40)]
    said = word_features.tokens(texts, least=3)
    asked = word_features.presence(peaks, said)
    for order in (np.arange(40), rng.permutation(40)):
        found = asked.asked(order)
        for feature in range(5):
            for token, name in enumerate(said.names):
                there = [name in texts[order[clip]].split() for clip in range(40)]
                assert found[feature, token] == pytest.approx(roc_auc_score(there, peaks[:, 0, feature]), abs=1e-5)
    shuffled = np.stack([asked.asked(rng.permutation(40)) for _ in range(1500)])
    np.testing.assert_allclose(shuffled.std(axis=0), asked.spread, rtol=0.1)


# ------------------------------------------------------------------------------------ planted words, and chance

WORDS = [f"word{n:02d}" for n in range(20)]


def spoken(seed=0, clips=120, features=15, plant=True):
    """Clips of 4 to 9 words of 12 frames, each longer text a longer clip. Feature 0 follows word03 where it is said;
    1 fires in every clip once, at word07 if it is there; 2 fires at the start of every clip; the others by chance."""
    rng, texts, parts, clip = np.random.default_rng(seed), [], [], []
    for number in range(clips):
        text = list(rng.permutation(WORDS[2:])[: rng.integers(3, 9)])
        text = [str(rng.choice(WORDS[:2])), *text]
        frames = 12 * len(text)
        dense = rng.exponential(0.5, (frames, features)) * (rng.random((frames, features)) < 0.02)
        at = {word: slice(12 * place, 12 * place + 12) for place, word in enumerate(text)}
        if plant:
            dense[:, 1] = 0
            if "word03" in at:
                dense[at["word03"], 0] += 2
            place = (
                at.get("word07") or slice(frames - 5, frames) if rng.random() < 0.5 else at.get("word07", slice(0, 5))
            )
            dense[place, 1] = rng.uniform(2, 2.1)
            dense[:6, 2] += rng.uniform(2, 3)
        texts.append(" ".join(text))
        parts.append(dense)
        clip += [number] * frames
    made = sparse_acts.of_chunks(parts)
    seconds = np.bincount(clip) * 0.02
    return made, np.array(clip), texts, np.array([f"v{n % 6}" for n in range(clips)]), seconds


def verdict(kind, world, seed=0, unit="word", alike=2):
    made, clip, texts, speakers, seconds = world
    said = word_features.tokens(texts, unit)
    profile = word_features.profile(made, clip, len(texts), bins=1 if kind is word_features.presence else 12)
    question = kind(profile, said)
    label = np.arange(len(texts))
    by_chance = null_distribution.null(question.asked, label, word_features.dealt(speakers, seconds, 100, alike, seed))
    judged = null_distribution.judge(question.asked(label), by_chance, question.spread, question.size)
    return {(int(f), str(said.names[t])) for f, t in np.argwhere(judged.found())}


def test_a_planted_word_is_found_by_its_presence():
    assert verdict(word_features.presence, spoken()) == {(0, "word03")}


def test_planted_words_are_found_where_they_should_be():
    """Feature 1 is as high in every clip, so that presence cannot tell, but place can."""
    found = verdict(word_features.position, spoken())
    assert {(0, "word03"), (1, "word07")} <= found
    assert not [word for feature, word in found if feature >= 2], "the start of a clip is no word"


@pytest.mark.parametrize("kind", [word_features.presence, word_features.position])
def test_nothing_is_found_where_nothing_is(kind):
    """At a false discovery rate of 1 in 20, at most 1 run of 20."""
    found = [verdict(kind, spoken(seed, clips=60, plant=False), seed) for seed in range(20)]
    assert sum(map(bool, found)) <= 1


def test_texts_of_clips_less_alike_find_too_much():
    """Why texts are dealt among clips of nearly the same length: longer ones have more words and higher peaks."""
    found = [verdict(word_features.presence, spoken(s, clips=60, plant=False), s, alike=10) for s in range(20)]
    assert sum(map(bool, found)) > 1


def test_characters_go_through_the_same_code():
    made, clip, texts, speakers, seconds = spoken(1)
    marked = [text.replace("word03", "x" * 6) for text in texts]
    found = verdict(word_features.position, (made, clip, marked, speakers, seconds), unit="character")
    assert found == {(0, "x"), (1, "7")}


def test_features_that_never_or_always_fire_are_not_found():
    made, clip, texts, speakers, seconds = spoken(clips=40)
    dense = made.toarray()
    dense[:, 0], dense[:, 1] = 0, 1
    world = (sparse_acts.of_chunks([dense]), clip, texts, speakers, seconds)
    for kind in (word_features.presence, word_features.position):
        assert not [word for feature, word in verdict(kind, world) if feature < 2]


def test_one_clip_and_one_text():
    made = sparse_acts.of_chunks([np.ones((5, 2))])
    said = word_features.tokens(["a word"], least=1)
    assert len(said.names) == 0
    assert word_features.presence(word_features.profile(made, np.zeros(5, int), 1), said).asked(
        np.array([0])
    ).shape == (2, 0)
