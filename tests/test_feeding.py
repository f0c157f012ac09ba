"""An SAE trained on the fly is the one trained from a store, up to rounding; it needs the clips alone, and resumes.

Activations on the fly come from other batches than a store's, so that their last bits may differ. Training carries that
on: what is compared is what both SAEs say of held-out frames.
"""

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from coders import flipped, require_close

from whisper_sae import cache
from whisper_sae.activations import extract
from whisper_sae.experiments import pipeline, sae_comparison, training_data
from whisper_sae.model import whisper_model
from whisper_sae.sae import architectures

SITES = ("encoder.0.resid", "encoder.1.resid")


@pytest.fixture
def run(small_whisper, corpus, run_for, data):
    """A small profile with a buffer, of which the clips alone have been made."""
    made = run_for(small_whisper, corpus(), tokens=4_000, shuffle_buffer=400)
    cache.make(pipeline.clips(made, 0))
    return made


def live(run):
    return replace(run, on_the_fly=True)


def weights(step):
    return architectures.load(step.path).state_dict()


def equal(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def require_alike(run, one, other):
    """AssertionError where two trainings that may round otherwise gave SAEs that differ on held-out frames."""
    rows, _ = sae_comparison.frames_of(live(run), cache.need(pipeline.clips(run, 0)), None, SITES[1], "test")
    x = rows.take(np.arange(len(rows)))
    with torch.no_grad():
        f, g = (architectures.load(step.path).encode(x) for step in (one, other))
    assert flipped(f, g) < 0.01  # of two trainings; of one SAE it is 0.001
    assert one.facts["fvu"] == pytest.approx(other.facts["fvu"], rel=0.01)
    assert one.facts["frames"] == other.facts["frames"]


@pytest.mark.parametrize(
    "fields", [{}, {"windows": "packed"}, {"dtype": "bfloat16", "patience": 1}, {"variant": "jumprelu"}],
    ids=["clip", "packed", "bfloat16", "jumprelu"],
)  # fmt: skip
def test_it_is_the_dictionary_that_a_store_gives(run, fields, rounding):
    run = replace(run, **fields)
    heard = cache.make(sae_comparison.dictionary(live(run), 0, SITES[1]))
    with pytest.raises(cache.NotMade):
        cache.need(pipeline.activations(run, 0))
    cache.make(pipeline.activations(run, 0))
    stored = cache.make(sae_comparison.dictionary(run, 0, SITES[1]))
    require_alike(run, heard, stored)
    assert heard.facts.keys() == stored.facts.keys() and heard.facts["frames"] > 100
    assert heard.manifest["files"].keys() == stored.manifest["files"].keys()
    assert not equal(stored, cache.make(sae_comparison.dictionary(replace(run, shuffle_buffer=0), 0, SITES[1])))


@pytest.mark.parametrize("patience", [0, 1])
def test_several_are_trained_in_one_pass_as_each_alone(run, monkeypatch, patience):
    run, windows, listener = replace(live(run), patience=patience), [], extract.listener

    def counted(*args):
        hear, prepare = listener(*args)
        return lambda numbers, ready: windows.extend(numbers) or hear(numbers, ready), prepare

    monkeypatch.setattr(extract, "listener", counted)
    alone = [cache.make(sae_comparison.dictionary(run, 0, site)) for site in SITES]
    apart, windows[:] = len(windows), []
    other = replace(run, name="other")
    for step in alone:
        step.path.rename(step.path.with_name("alone-" + step.key))
    beside = [cache.make(sae_comparison.dictionary(other, 0, site, beside=SITES)) for site in SITES]
    assert 0 < len(windows) <= 0.6 * apart, "heard once, not once a site"
    for one, with_others in zip(alone, beside, strict=True):
        moved = cache.Step(one.path.with_name("alone-" + one.key), one.manifest, "")
        assert one.key == with_others.key and equal(moved, with_others)
        assert one.facts == {name: value for name, value in with_others.facts.items() if name != "seconds"}
        assert one.manifest["files"] == with_others.manifest["files"]


def test_from_a_store_nobody_is_trained_beside_another(run):
    cache.make(pipeline.activations(run, 0))
    cache.make(sae_comparison.dictionary(run, 0, SITES[0], beside=SITES))
    assert not (cache.root() / "steps" / "dictionaries").exists()


@pytest.mark.parametrize("beside", [(), pytest.param(SITES, marks=pytest.mark.slow)])
def test_what_was_interrupted_goes_on(run, monkeypatch, tmp_path, beside):
    run = replace(live(run), tokens=7_500, batch_tokens=64)  # more than 100 steps: a checkpoint
    whole = cache.make(sae_comparison.dictionary(run, 0, SITES[1], beside=beside))
    monkeypatch.setenv("WHISPER_SAE_DATA", str(tmp_path / "again"))
    cache.make(pipeline.clips(run, 0))
    step, calls = sae_comparison.architectures.SAE.terms, []

    @functools.wraps(step)
    def stumble(self, *args):
        calls.append(1)
        if len(calls) == 110 * max(1, len(beside)):
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(sae_comparison.architectures.SAE, "terms", stumble)
        with pytest.raises(KeyboardInterrupt):
            cache.make(sae_comparison.dictionary(run, 0, SITES[1], beside=beside))
    calls.clear()
    counted = functools.wraps(step)(lambda *args: calls.append(1) or step(*args))
    monkeypatch.setattr(sae_comparison.architectures.SAE, "terms", counted)
    resumed = cache.make(sae_comparison.dictionary(run, 0, SITES[1], beside=beside))
    steps = -(-7_500 // 64)
    assert len(calls) == (steps - 100) * max(1, len(beside)), "from the checkpoint on"
    require_alike(run, whole, resumed)
    assert whole.manifest["files"].keys() == resumed.manifest["files"].keys()


@pytest.mark.slow
def test_rivals_sweeps_and_scores_are_those_of_a_store(run, rounding):
    found = {}
    for name, one in {"heard": live(run), "stored": run}.items():
        clips = cache.need(pipeline.clips(one, 0))
        acts = None if one.on_the_fly else cache.make(pipeline.activations(one, 0))
        cache.make(sae_comparison.dictionary(one, 0, SITES[1]))
        told = sae_comparison.scores(cache.make(sae_comparison.rivals(one, 0, SITES[1])))
        swept = sae_comparison.scores(cache.make(sae_comparison.sweep(sae_comparison.grid(one, 0), 0, SITES[1])))
        rows, voices = sae_comparison.frames_of(one, clips, acts, SITES[1], "test")
        score = sae_comparison.score(one, clips, acts, SITES[1], lambda x: x / 2, "test")
        found[name] = (told, swept.drop(columns=["seconds", "key"]), rows.take(voices.argsort()), score)
    (told, swept, rows, score), (told_too, swept_too, rows_too, score_too) = found.values()
    require_close(rows, rows_too, run.dtype)
    assert score == pytest.approx(score_too, rel=1e-3, nan_ok=True) and len(score) > 2
    for one, other in ((told, told_too), (swept, swept_too)):
        pd.testing.assert_frame_equal(one, other, rtol=0.01)
        assert len(one) > 2


def test_the_key_is_of_what_is_heard(run):
    key = sae_comparison.dictionary(live(run), 0, SITES[1]).key
    for name, value in {"dtype": "float32", "windows": "packed", "batch_windows": 3, "shuffle_buffer": 401}.items():
        assert sae_comparison.dictionary(replace(live(run), **{name: value}), 0, SITES[1]).key != key, name
    for name, value in {"shard_windows": 3, "focus": SITES[0], "sites": SITES}.items():
        assert sae_comparison.dictionary(replace(live(run), **{name: value}), 0, SITES[1]).key == key, name
    assert sae_comparison.dictionary(live(run), 0, SITES[1], beside=SITES).key == key
    assert sae_comparison.dictionary(run, 0, SITES[1]).key != key


def test_a_decoders_site_is_always_read_from_a_store(run):
    assert training_data.on_the_fly(live(run), SITES[0]) and not training_data.on_the_fly(live(run), "decoder.0.resid")
    both = replace(live(run), sites=(*SITES, "decoder.0.resid"))
    assert set(training_data.needs(both, 0, "decoder.0.resid")) == {"clips", "activations"}
    assert set(training_data.needs(both, 0, SITES[0])) == {"clips"}


def test_for_the_figures_a_few_windows_are_stored(run, monkeypatch):
    run = replace(live(run), windows="packed")
    heard = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    every = extract.planned(run, whisper_model.load(run.model, "cpu"), heard)
    assert every.heard.nunique() < pipeline.SHOWN
    few = every.heard.nunique() - 3
    monkeypatch.setattr(pipeline, "SHOWN", few)
    step = cache.make(pipeline.activations(run, 0))
    windows = step.table("windows.csv")
    assert step.facts["windows"] == few == windows.heard.nunique() and (windows["at"] > 0).any()
    columns = ["clip", "first", "samples", "at"]
    told = windows[columns].merge(every[columns], how="left", indicator=True)
    assert (told._merge == "both").all(), "each is one of them"


def test_what_was_stored_for_the_figures_is_not_learnt_from(run, monkeypatch):
    """The rows of all clips are heard, though a step of activations is at hand, which holds a few."""
    monkeypatch.setattr(pipeline, "SHOWN", 4)
    clips, few = cache.need(pipeline.clips(run, 0)), cache.make(pipeline.activations(live(run), 0))
    rows, voices = sae_comparison.frames_of(live(run), clips, few, SITES[1], "train")
    stored, _ = sae_comparison.frames_of(run, clips, cache.make(pipeline.activations(run, 0)), SITES[1], "train")
    assert len(rows) == len(stored) == len(voices) > few.facts["frames"]
    require_close(rows.sample(50, 0), stored.sample(50, 0), run.dtype)


def test_a_split_without_clips_is_said(run_for, small_whisper, corpus, data):
    run = run_for(small_whisper, corpus(voices=1, clips=3))
    clips, acts = cache.make(pipeline.clips(run, 0)), cache.make(pipeline.activations(run, 0))
    with pytest.raises(ValueError, match=r"none are of validation speakers; three speakers are needed"):
        training_data.fed(run, clips, acts, (run.focus,)).rows(run.focus, "validation")
