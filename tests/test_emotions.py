"""The recipes of notebook 8 on a small encoder that knows nothing: they run, and find nothing but what is planted."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_encoders import folders  # noqa: F401

from whisper_sae import cache, profiles
from whisper_sae.experiments import any_module, emotions, prompt_interventions, prompts
from whisper_sae.features import index
from whisper_sae.model import encoders
from whisper_sae.viz import class_plots

HOW = any_module.Training(tokens=8_000, expansion=4, k=8, dead_tokens=4_000)


@pytest.fixture(scope="module")
def heard(folders, tmp_path_factory):  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHISPER_SAE_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setattr(emotions, "DECOYS", 2)
        encoder = encoders.load(str(folders["t5"]))
        encoder.tokenizer.model_max_length = 64
        found = emotions.reading(encoder, prompts.generate(648, 1), profiles.TABLE["demo"])
        cache.make(found.recording), cache.make(found.pooled)
        yield encoder, found


def test_from_prompts_to_verdicts(heard):
    encoder, found = heard
    told, x = found.told, emotions.means(found)
    np.testing.assert_allclose(x, encoder.embed(told.text.tolist()), atol=1e-4)
    main = cache.make(emotions.trained(found, 0, HOW))
    step = cache.make(emotions.features(found, 0, HOW))
    table, share = emotions.read(step, "features.csv"), np.asarray(step.array("share.npy"), dtype=float)
    nulls = step.table("nulls.csv")
    assert nulls["asked of"].tolist() == ["the dictionary", "a random dictionary", "emotions dealt anew"]
    assert nulls.found.tolist() == [table.found.sum(), 0, 0] and share.shape == (648, 128)
    assert table.held_out.dtype == float and (table.selectivity.dropna() <= 4).all()
    mine = emotions.candidates(table, 2)
    codes, asked = emotions.codes_of(found, step, main), (told["split"] == "test").to_numpy()
    judge = emotions.judge(x, told)
    emotion = told.emotion.to_numpy()
    causes = prompt_interventions.interventions(judge, codes.only(asked), emotion[asked], codes, emotion, mine, draws=5)
    assert set(causes.table.way) == set(prompt_interventions.WAYS) and len(causes.ratios) == sum(
        map(len, mine.values())
    )
    assert causes.table.p.dropna().between(0, 1).all() and causes.table.p.notna().any()
    assert 0 <= emotions.apart(codes, mine, 0, draws=3)[0] <= 1
    same, lot = emotions.alike(found, [main, main], mine, 0)
    assert same == 1 and lot < 0.2
    shelf = index.Index(cache.make(any_module.codes(found.recording, emotions.trained(found, 0, HOW), found.site)).path)
    shown = emotions.examples(found, encoder, shelf, int(np.argmax(shelf.rates)))
    assert len(shown) == 3 and shown.value.is_monotonic_decreasing
    assert set(shown.token) <= set(encoder.tokenizer.get_vocab())
    vectors = emotions.directions(x, told, codes, mine)
    assert set(vectors) == {"feature", "difference of means"}


def test_a_planted_feature_is_found_among_those_of_a_net_that_knows_nothing(heard):
    _, found = heard
    share = np.random.default_rng(0).uniform(size=(648, 60)) < 0.2
    assert emotions.planted(share, found.told, "sad", 0)


def test_the_probes_table_says_what_phrases_alone_give(heard):
    _, found = heard
    told = found.told
    one_hot = pd.get_dummies(told.unit).to_numpy(dtype=np.float32)  # knows phrases by heart, and nothing of emotions
    read = emotions.probed(one_hot, told, 0).set_index(["question", "input"]).right
    assert read["held-out templates", "embedding"] > 0.9 and read["held-out templates", "emotions dealt anew"] > 0.9
    assert read["unseen phrases", "embedding"] < 0.35 and read["word-free, from words", "embedding"] < 0.35
    true = pd.get_dummies(told.emotion).to_numpy(dtype=np.float32) + one_hot[:, :4]
    told_it = emotions.probed(true, told, 0).set_index(["question", "input"])
    assert told_it.low["unseen phrases", "embedding"] > told_it.high["unseen phrases", "emotions dealt anew"]


def test_likeness_is_told_of_words_and_of_scenes(heard):
    _, found = heard
    table = emotions.likenesses(emotions.means(found), found.told, 0)
    assert table.number[0] == 648 == table.number[1:].sum() and (table.p > 0).all()


def test_a_penalty_of_the_references_is_ours(heard):
    """Ours on scaled rows is theirs on rows as they are, but for a factor of all terms."""
    x, f, l1 = torch.randn(50, 16) * 3, torch.rand(50, 64), 0.003
    scale = (16 / x.square().sum(dim=1).mean()).sqrt()
    theirs = x.square().mean() + l1 * f.sum() / 50
    ours = (scale * x).square().mean() + emotions.penalty_of(l1, x) * (scale * f).sum() / (50 * 16)
    assert ours.item() == pytest.approx((scale**2 * theirs).item(), rel=1e-4)


def test_the_figures_are_drawn():
    table = pd.DataFrame([[0.1, 0.9], [0.5, 0.0]], index=[7, 9], columns=["calm", "sad"])
    assert len(class_plots.heat(table, "t", "share").axes) == 2
    rows = [(name, kind, alpha, alpha / 9, alpha / 5) for name in ("calm", "sad") for alpha in (0.0, 1.0)
            for kind in ("feature", "difference of means", "random")]  # fmt: skip
    fig = class_plots.rises(pd.DataFrame(rows, columns=["class", "vector", "alpha", "rise", "p95"]))
    assert [axis.get_title(loc="left") for axis in fig.axes] == ["calm", "sad"] and len(fig.axes[0].lines) == 3
    assert len(class_plots.densities({"a": np.linspace(0, 1, 50), "b": np.zeros(9)}).axes) == 1
