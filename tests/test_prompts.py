"""Emotion is crossed with all else in the prompts, no scene names a mood, and held-out templates stay out."""

import numpy as np
import pytest

from whisper_sae.experiments import prompts


@pytest.fixture(scope="module")
def told():
    return prompts.generate(1296)


def test_every_combination_comes_once(told):
    factors = ["emotion", "instrument", "genre", "intensity", "style"]
    assert len(told) == 1296 and told.text.is_unique
    assert (told.groupby(factors).size() == 1).all() and len(told.groupby(factors)) == 4 * 6 * 6 * 3 * 3
    assert set(told.emotion) == {"happy", "sad", "calm", "energetic"}


def test_the_four_prompts_of_a_block_differ_in_their_phrase_alone(told):
    for _, block in told.groupby("block"):
        assert block.emotion.is_unique and len(block) == 4
        rest = {text.replace(phrase, "…") for text, phrase in zip(block.text, block.phrase, strict=True)}
        assert len(rest) == 1


def test_nothing_but_the_phrase_tells_the_emotion(told):
    """Each level of each factor has as many prompts of each emotion, so a probe of them is at chance."""
    for factor in ("instrument", "genre", "intensity", "style", "template", "split"):
        counts = told.groupby([factor, "emotion"]).size().unstack()
        assert (counts.nunique(axis=1) == 1).all()


def test_word_free_prompts_have_no_word_for_an_emotion(told):
    named = prompts.with_emotion_words(told.text)
    assert not named[told.word_free].any() and named[~told.word_free].all()
    assert prompts.with_emotion_words(["a SERENE lake", "unhappy", "the calmest"]).tolist() == [True, False, False]
    assert set(prompts.EMOTIONS) <= prompts.words_for_emotions()


def test_held_out_templates_and_phrases_are_in_no_training_prompt(told):
    train = told[told["split"] == "train"]
    assert not train.template.isin(prompts.HELD_TEMPLATES).any()
    assert set(told[told["split"] == "test"].template) == set(prompts.HELD_TEMPLATES)
    unseen = told[told["split"] == "validation"]
    assert not set(unseen.unit) & set(train.unit) and unseen.emotion.value_counts().nunique() == 1


def test_a_phrase_is_of_one_emotion_and_style_and_each_has_twelve(told):
    assert (told.groupby("unit")[["emotion", "style"]].nunique() == 1).all().all()
    assert told.unit.nunique() == 4 * 3 * 12


@pytest.mark.parametrize("count", [400, 500, 1296, 2592])
def test_as_many_as_are_asked_for(count):
    told = prompts.generate(count, seed=1)
    assert len(told) == count and (told.emotion.value_counts() == count // 4).all()
    assert told.equals(prompts.generate(count, seed=1)) and not told.equals(prompts.generate(count, seed=2))
    repeats = told.groupby(["emotion", "instrument", "genre", "intensity", "style"]).size()
    assert repeats.max() <= np.ceil(count / 1296)


@pytest.mark.parametrize("count", [0, 3, 401])
def test_blocks_are_never_cut(count):
    with pytest.raises(ValueError, match="give a multiple of 4"):
        prompts.generate(count)
