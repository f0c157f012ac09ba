"""A dictionary is made as its profile asks, compared at its own price, and swept without training twice."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae import cache, profiles
from whisper_sae.experiments import fitting, pipeline, sae_comparison
from whisper_sae.sae import architectures, metrics, training

SITE = "encoder.1.resid"


@pytest.fixture
def made(small_whisper, corpus, run_for, data):
    """A small profile of which all is recorded: its `run`, and the steps `clips` and `activations`."""

    def prepare(**fields):
        folder = data.parent / "voices"
        run = run_for(small_whisper, folder if folder.exists() else corpus(), tokens=2_000, **fields)
        return run, cache.make(pipeline.clips(run, 0)), cache.make(pipeline.activations(run, 0))

    return prepare


@pytest.fixture
def trained(monkeypatch):
    """What every training was asked: one dictionary of options a training."""
    asked, together = [], training.train_together

    @functools.wraps(together)
    def watched(coders, batches, **how):
        asked.extend([how] * len(coders))
        return together(coders, batches, **how)

    monkeypatch.setattr(training, "train_together", watched)
    return asked


# ------------------------------------------------------------------------------------------ one dictionary


def test_a_dictionary_is_trained_as_the_profile_asks(made, trained):
    run, *_ = made(decay_shape="cosine", auxiliary=0.5, resample_tokens=512, patience=2, learning_rate=3e-3)
    step = cache.make(sae_comparison.dictionary(run, 0, SITE))
    (how,) = trained
    wanted = {"shape": "cosine", "auxiliary": 0.5, "resample_tokens": 512, "patience": 2, "learning_rate": 3e-3}
    assert wanted.items() <= how.items() and how["steps"] == 8 and callable(how["held_out"][SITE])
    assert {"fvu", "fvu_low", "fvu_high", "l0", "dead", "cosine", "speakers"} <= step.facts.keys()
    assert step.manifest["params"]["patience"] == 2


def test_without_patience_no_held_out_frame_is_looked_at(made, trained):
    run, *_ = made()
    cache.make(sae_comparison.dictionary(run, 0, SITE))
    assert trained[0]["held_out"] is None and trained[0]["patience"] == 0


def test_a_penalty_of_0_is_the_variants_own(made):
    run, *_ = made(variant="relu")
    for penalty, used in ((0.0, architectures.ReLU.default_penalty), (3.0, 3.0)):
        step = cache.make(sae_comparison.dictionary(replace(run, penalty=penalty), 0, SITE))
        assert architectures.load(step.path).penalty == used


def test_a_dictionary_has_the_key_of_what_influences_it_and_only_that(made):
    run, *_ = made(variant="relu")
    key = sae_comparison.dictionary(run, 0, SITE).key
    changes = dict(
        variant="tied", expansion=3, k=3, penalty=0.5, tokens=1_000, batch_tokens=128, learning_rate=1e-3,
        decay_shape="cosine", dead_tokens=9, auxiliary=0.0, resample_tokens=300, patience=1, shuffle_buffer=500,
    )  # fmt: skip
    for name, value in changes.items():
        assert sae_comparison.dictionary(replace(run, **{name: value}), 0, SITE).key != key, name
    same = dict(
        name="other", about="Other.", focus="encoder.0.resid", source="x", device="auto",
        sweep_variant=("tied",), sweep_k=(1,), sweep_penalty=(), sweep_expansion=(2,), sweep_learning_rate=(1.0,),
        sweep_seed=(3,), sweep_tokens=7,
    )  # fmt: skip
    for name, value in same.items():
        assert sae_comparison.dictionary(replace(run, **{name: value}), 0, SITE).key == key, name
    assert sae_comparison.dictionary(run, 0, "encoder.0.resid").key != key
    assert sae_comparison.dictionary(run, 0, SITE, own_seed=0).key == key
    others = [
        sae_comparison.dictionary(run, 0, SITE, own_seed=1),
        sae_comparison.dictionary(run, 0, SITE, frozen="encoder"),
    ]
    assert len({key, *(recipe.key for recipe in others)}) == 3


def test_every_field_about_training_is_in_the_key():
    """A field between `variant` and the sweep says how a dictionary is trained."""
    names = list(profiles.FIELDS)
    about = names[names.index("variant") : names.index("sweep_variant")]
    run = profiles.choose("demo")
    assert set(about) <= sae_comparison.dictionary(run, 0, run.focus).params.keys()


def test_a_seed_of_its_own_draws_another_dictionary_from_the_same_clips(made):
    run, *_ = made()
    one, two = (sae_comparison.dictionary(run, 0, SITE, own_seed=seed) for seed in (0, 1))
    assert one.needs["clips"].key == two.needs["clips"].key
    first, second = (architectures.load(cache.make(recipe).path).W_dec for recipe in (one, two))
    assert not torch.allclose(first, second, atol=0.1)


@pytest.mark.parametrize("variant", [name for name in architectures.VARIANTS if name != "tied"])
@pytest.mark.parametrize("frozen", sae_comparison.HALVES)
def test_a_frozen_half_keeps_its_directions_and_the_other_learns(made, variant, frozen):
    run, clips, acts = made(variant=variant, learning_rate=2e-2, resample_tokens=300, dead_tokens=300)
    rows, _ = sae_comparison.frames_of(run, clips, acts, SITE, "train")
    before = fitting.begun(run, rows, 0)[0][SITE]
    after = architectures.load(cache.make(sae_comparison.dictionary(run, 0, SITE, frozen=frozen)).path)
    for half, name in sae_comparison.HALVES.items():
        moved = (getattr(before, name) - getattr(after, name)).abs().max()
        assert (moved < 1e-5) == (half == frozen), (name, moved)


def test_what_cannot_be_frozen(made):
    run, *_ = made(variant="tied")
    with pytest.raises(ValueError, match="frozen: 'bias' is not one of encoder, decoder"):
        sae_comparison.dictionary(run, 0, SITE, frozen="bias")
    with pytest.raises(ValueError, match="frozen: the two halves of a tied dictionary are one"):
        cache.make(sae_comparison.dictionary(run, 0, SITE, frozen="encoder"))


def test_more_latents_on_a_frame_than_there_are_is_refused_before_training(made, trained):
    run, *_ = made(k=129)
    with pytest.raises(ValueError, match="k: must lie between 1 and d_sae = 128, got 129"):
        cache.make(sae_comparison.dictionary(run, 0, SITE))
    assert not trained


# ------------------------------------------------------------------------------------------------ the rivals


def test_rivals_say_as_many_numbers_as_the_dictionary_does(made):
    run, *_ = made()
    trained = cache.make(sae_comparison.dictionary(run, 0, SITE))
    for half in sae_comparison.HALVES:
        cache.make(sae_comparison.dictionary(run, 0, SITE, frozen=half))
    step = cache.make(sae_comparison.rivals(run, 0, SITE, frozen=tuple(sae_comparison.HALVES)))
    scores = sae_comparison.scores(step).set_index("rival")
    numbers = max(1, round(trained.facts["l0"]))
    assert scores.numbers["principal directions"] == scores.numbers["neurons"] == scores.numbers["random dictionary"]
    assert scores.numbers["neurons"] == numbers and scores.numbers["the mean"] == 0
    assert scores.numbers["dictionary"] == pytest.approx(trained.facts["l0"])
    assert scores.fvu["dictionary"] == pytest.approx(trained.facts["fvu"])
    assert len(scores) == 8 and "random encoder directions, the rest trained" in scores.index
    assert scores.numbers[[name for name in scores.index if "centroids" in name]].tolist() == [1]
    assert scores.fvu["the mean"] == pytest.approx(1, abs=0.3) and (scores.fvu.idxmin() != "the mean")


def test_rivals_need_the_dictionary(made):
    run, *_ = made()
    with pytest.raises(cache.NotMade, match=r"'dictionary of encoder\.1\.resid, batchtopk, k = 4' .* 02"):
        cache.make(sae_comparison.rivals(run, 0, SITE))


@pytest.mark.parametrize("numbers", [1, 5, 200])
def test_simple_ways_stay_within_the_width(run_for, numbers):
    run = run_for("model", "corpus")
    x = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    ways = sae_comparison.simple_ways(x, run, numbers, seed=0)
    assert {said for _, said in ways} == {0, 1, min(numbers, 16), min(numbers, 64)}
    assert "the nearest of 64 centroids" in {name for name, _ in ways}
    for say in ways.values():
        with torch.no_grad():
            assert say(x).shape == x.shape and torch.isfinite(say(x)).all()
    random = next(say for (name, _), say in ways.items() if name == "random dictionary")
    assert metrics.reconstruction(random, [x])["fvu"] < 1


# ------------------------------------------------------------------------------------------------- the grid

BASE = replace(profiles.choose("demo"), sweep_tokens=0)
VARIANTS = st.lists(st.sampled_from(list(architectures.VARIANTS)), min_size=1, unique=True)
NUMBERS = st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True)
WEIGHTS = st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0]), min_size=1, unique=True)


@given(VARIANTS, NUMBERS, WEIGHTS, st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
def test_a_grid_has_every_combination_that_says_something_once(variants, ks, penalties, seeds):
    points = sae_comparison.grid(BASE, 0, variant=variants, k=ks, penalty=penalties, seed=seeds)
    found = [(point.run.variant, point.run.k, point.run.penalty, point.seed) for point in points]
    wanted = set()
    for variant in variants:
        for seed in seeds:
            by_penalty = variant in ("relu", "tied")
            wanted |= {(variant, BASE.k, one, seed) if by_penalty else (variant, one, 0.0, seed)
                       for one in (penalties if by_penalty else ks)}  # fmt: skip
    assert len(found) == len(set(found)) and set(found) == wanted


def test_a_grid_without_axes_is_the_profiles():
    run = replace(BASE, sweep_variant=(), sweep_k=(), sweep_penalty=(), sweep_tokens=123)
    (point,) = sae_comparison.grid(run, 5)
    assert point == (replace(run, tokens=123), 5)
    points = sae_comparison.grid(replace(run, sweep_k=(2, 3), sweep_expansion=(2, 4), sweep_seed=(7, 8)), 5)
    assert [(p.run.k, p.run.expansion, p.seed) for p in points] == [
        (k, expansion, seed) for k in (2, 3) for expansion in (2, 4) for seed in (7, 8)
    ]
    assert all(point.run.tokens == 123 for point in points)


def test_another_variant_has_its_own_penalty():
    run = replace(BASE, variant="relu", penalty=5.0, sweep_penalty=())
    points = sae_comparison.grid(run, 0, variant=["relu", "tied", "topk", "jumprelu"])
    assert [point.run.penalty for point in points] == [5.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"batch": [1]}, "there is no axis 'batch'; known: variant, k, penalty, expansion, learning_rate, seed"),
        ({"k": []}, "the axis k is empty"),
        ({"k": [4, 0]}, "k: must be at least 1, got 0"),
        ({"variant": ["top"]}, "variant: 'top' is not one of batchtopk"),
        ({"expansion": [128]}, "expansion: must be 2 to 64, got 128"),
        ({"learning_rate": [0.0]}, "learning_rate: must be above 0"),
        ({"penalty": [float("nan")]}, "penalty: must be at least 0"),
        ({"seed": [-1]}, "seed: must be at least 0"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(axes, said):
    with pytest.raises(ValueError, match=f"sweep: {said}"):
        sae_comparison.grid(BASE, 0, **axes)


# ------------------------------------------------------------------------------------------------ the sweep


def test_a_sweep_of_all_variants_has_a_row_a_point(made, trained):
    run, *_ = made()
    points = sae_comparison.grid(run, 0, variant=list(architectures.VARIANTS), k=[2, 6], penalty=[0.5, 2.0])
    scores = sae_comparison.scores(cache.make(sae_comparison.sweep(points, 0, SITE)))
    assert len(scores) == len(points) == 14 and len(trained) == 14
    asked = ["variant", "k", "penalty", "expansion", "learning_rate", "seed", "tokens"]
    measured = ["l0", "fvu", "fvu_low", "fvu_high", "dead", "cosine", "seconds", "key", "front"]
    assert {*asked, *measured} <= set(scores.columns)
    np.testing.assert_array_equal(scores.front, metrics.pareto(scores.l0, scores.fvu))
    for point, row in zip(points, scores.itertuples(), strict=True):
        step = cache.need(point.recipe(0, SITE))
        assert (row.key, row.variant, row.fvu) == (step.key, point.run.variant, pytest.approx(step.facts["fvu"]))
        assert (row.k == "") == (row.variant in ("relu", "tied"))
        assert (row.penalty == "") == (row.variant not in profiles.WEIGHED)


def test_nothing_is_trained_twice(made, trained):
    run, *_ = made()
    cache.make(sae_comparison.sweep(sae_comparison.grid(run, 0, k=[2, 4]), 0, SITE))
    assert len(trained) == 2
    wider = sae_comparison.sweep(sae_comparison.grid(run, 0, k=[2, 4, 8]), 0, SITE)
    cache.make(wider)
    assert len(trained) == 3, "two of the three were there"
    cache.make(wider)
    cache.make(sae_comparison.dictionary(replace(run, k=8), 0, SITE))
    assert len(trained) == 3


def test_a_sweep_that_was_stopped_goes_on(made, trained, monkeypatch):
    run, *_ = made()
    sweep = sae_comparison.sweep(sae_comparison.grid(run, 0, k=[2, 4, 8]), 0, SITE)
    together = training.train_together

    @functools.wraps(together)
    def stops_at_the_third(coders, batches, **how):
        if len(trained) == 2:
            raise KeyboardInterrupt
        return together(coders, batches, **how)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_together", stops_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            cache.make(sweep)
    assert len(trained) == 2
    assert len(sae_comparison.scores(cache.make(sweep))) == 3 and len(trained) == 3


def test_a_sweep_that_cannot_end_is_not_begun(made, trained):
    run, *_ = made()
    with pytest.raises(ValueError, match="sweep: k = 200 is more than the 128 latents"):
        cache.make(sae_comparison.sweep(sae_comparison.grid(run, 0, k=[2, 200]), 0, SITE))
    with pytest.raises(ValueError, match="sweep: there are no points"):
        sae_comparison.sweep([], 0, SITE)
    with pytest.raises(KeyError, match="was not recorded"):
        cache.make(sae_comparison.sweep(sae_comparison.grid(run, 0), 0, "encoder.7.resid"))
    assert not trained


def test_the_test_speakers_are_others(made):
    """Nothing is chosen on them: they are neither learnt from nor scored in a sweep."""
    run, clips, acts = made()
    heard = pipeline.table(run, clips)
    cast = {split: set(part.speaker) for split, part in heard.groupby("split")}
    assert cast["test"] and not cast["test"] & (cast["train"] | cast["validation"])
    mean = lambda x: x.mean(dim=0).expand_as(x)  # noqa: E731
    scores = {split: sae_comparison.score(run, clips, acts, SITE, mean, split) for split in ("validation", "test")}
    assert scores["test"]["frames"] == len(sae_comparison.frames_of(run, clips, acts, SITE, "test")[0])
    assert scores["test"]["mse"] != scores["validation"]["mse"]


def test_too_few_speakers_leave_no_interval_in_a_table(made):
    run, *_ = made()
    step = cache.make(sae_comparison.sweep(sae_comparison.grid(run, 0, k=[2]), 0, SITE))
    scores = sae_comparison.scores(step)
    assert scores.speakers.tolist() == [1] and scores.fvu_low.isna().all() and scores.fvu.dtype == float
