"""What the page of maps and clusters is drawn from: means of valid frames, in order, or a reason why there are none."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from whisper_sae import cache
from whisper_sae.activations import store
from whisper_sae.data import clip_table
from whisper_sae.experiments import clip_clusters, feature_index, pipeline, sae_comparison
from whisper_sae.features import clusters, index
from whisper_sae.sae import architectures

SITE = "encoder.1.resid"


@pytest.fixture
def made(small_whisper, corpus, run_for, data):
    """All that the recipes need: the run, its clips, its index and the means of its clips."""

    def prepare(voices=6, clips=4, **fields):
        run = run_for(small_whisper, corpus(voices=voices, clips=clips), tokens=2_000, **fields)
        told = cache.make(pipeline.clips(run, 0))
        acts = cache.make(pipeline.activations(run, 0))
        trained = cache.make(sae_comparison.dictionary(run, 0, SITE))
        codes = cache.make(feature_index.codes(run, 0, SITE))
        averaged = cache.make(clip_clusters.means(run, 0, SITE))
        return SimpleNamespace(
            run=run, heard=pipeline.table(run, told), acts=acts, trained=trained, codes=codes, averaged=averaged
        )

    return prepare


@pytest.mark.parametrize("windows", ["clip", "packed"])
def test_means_are_over_the_valid_frames_of_a_clip_and_of_all_its_windows(made, windows, monkeypatch):
    monkeypatch.setattr(clip_clusters, "FIRINGS", 300)  # several blocks
    here = made(windows=windows)
    held, coder = store.Activations(here.acts.path), architectures.load(here.trained.path)
    told = here.averaged.table("clips.csv")
    windows_of = here.acts.table("windows.csv")["clip"]
    assert told["clip"].tolist() == list(range(24)) and windows_of.duplicated().any(), "some clips have two windows"
    for row, clip in enumerate(told["clip"]):
        parts = [torch.from_numpy(held.window(SITE, n).astype(np.float32)) for n in np.flatnonzero(windows_of == clip)]
        with torch.no_grad():
            f = coder.encode(torch.cat(parts)).numpy()
        np.testing.assert_allclose(here.averaged.array("means.npy")[row], f.mean(axis=0), rtol=5e-3, atol=2e-3)
        assert told.frames[row] == len(f)
        kinds = np.concatenate([held.kinds[n][held.kinds[n] > 0] for n in np.flatnonzero(windows_of == clip)])
        assert told.silence[row] == pytest.approx((kinds == clip_table.SILENCE).mean())


def test_blocks_cover_every_feature_once_and_bound_what_is_read(monkeypatch):
    monkeypatch.setattr(clip_clusters, "FIRINGS", 10)
    of = SimpleNamespace(features=6, firings=np.array([0, 4, 8, 30, 30, 31, 40, 99]))
    assert clip_clusters._blocks(of) == [(0, 2), (2, 3), (3, 6)]
    assert clip_clusters._blocks(SimpleNamespace(features=3, firings=np.zeros(4, int))) == [(0, 3)]


def test_clusters_maps_and_forests_are_of_the_clips_in_their_order(made):
    here = made()
    grouped = cache.make(clip_clusters.grouped(here.run, 0, SITE, True))
    found = clip_clusters.clusters_of({"": grouped})[""]
    x = clip_clusters.rows_of(here.averaged, found.index)
    again = clusters.find(x[:, (x != x[:1]).any(axis=0)])
    assert grouped.facts["clusters"] == again.clusters and found.tolist() == again.cluster.tolist()
    assert clip_clusters.silhouettes_of({"": grouped})[""].clusters.tolist() == again.table.clusters.tolist()
    islands, way, trust = clip_clusters.tables_of(cache.make(clip_clusters.mapped(here.run, 0, SITE)))
    assert islands["clip"].tolist() == list(range(24))
    assert (index.Index(here.codes.path).rates[way.feature] > 0).all() and set(trust.of) == {"clips", "directions"}
    read = cache.make(clip_clusters.forests(here.run, 0, SITE)).table("read.csv")
    assert read.split.tolist() == ["frames", "speakers", "frames"] and read.speakers.tolist() == [6, 6, 6]


def test_a_dictionary_half_as_large_lives_on(made, monkeypatch):
    monkeypatch.setattr(clip_clusters, "MOST_TOGETHER", 900)  # some of the rows
    here = made(expansion=4)
    for recipe in clip_clusters.smaller(here.run, 0, SITE):
        cache.make(recipe)
    step = cache.make(clip_clusters.families_of(here.run, 0, SITE))
    children, parents = step.table("children.csv"), clip_clusters.parents_of(step)
    assert parents.lost.isna().equals(parents.children == 0) and parents.lost.dropna().between(0, 1).all()
    assert step.facts["latents"] == 2 * here.acts.facts["sites"][SITE] and 900 <= step.facts["frames"] < 1100
    assert step.facts["linked"] == children.linked.sum() == parents.children.sum()
    assert len(children) <= 4 * here.acts.facts["sites"][SITE] and (children.inside[children.linked] >= 0.5).all()
    with pytest.raises(ValueError, match="expansion: 3 cannot be halved"):
        clip_clusters.families_of(replace(here.run, expansion=3), 0, SITE)


def test_too_little_of_everything_gives_reasons_and_no_tables(made):
    here = made(voices=3, clips=1)
    grouped = cache.make(clip_clusters.grouped(here.run, 0, SITE, True))
    assert grouped.facts["clusters"] == 0 and "too few to look for clusters" in grouped.facts["why"]
    assert clip_clusters.clusters_of({"": grouped}) == clip_clusters.silhouettes_of({"": grouped}) == {}
    laid = cache.make(clip_clusters.mapped(here.run, 0, SITE))
    islands, _, _ = clip_clusters.tables_of(laid)
    assert islands.empty and "too few for a map" in laid.facts["why_clips"]
    assert "two with two speakers" in cache.make(clip_clusters.forests(here.run, 0, SITE)).facts["why"]
    assert "two with two speakers" in cache.make(clip_clusters.forests(here.run, 0, SITE, "accent")).facts["why"]


def test_only_clips_with_words_are_spoken(made):
    here = made()
    heard = here.heard.assign(text=np.where(here.heard.index < 5, "", here.heard.text))
    assert clip_clusters.drawn(here.averaged, heard, True, 0)[1].tolist() == list(range(5, 24))
    x, clip = clip_clusters.drawn(here.averaged, heard, False, 0)
    assert len(clip) == 24 and (x.std(axis=0) > 0).all()
    assert clip_clusters.drawn(here.averaged, heard.assign(text=""), True, 0)[0].shape[0] == 0


def test_features_go_together_as_their_codes_do(made):
    here = made()
    found = clip_clusters.joint(here.codes, here.trained, 10)
    of = index.Index(here.codes.path)
    dense = of.columns(0, of.features).toarray()[:, found.features]
    np.testing.assert_allclose(found.correlation, np.corrcoef(dense, rowvar=False), atol=1e-6)
    first = found.pairs.iloc[0]
    one, other = (dense[:, found.features.tolist().index(int(name))] for name in (first.one, first.other))
    assert first.both == pytest.approx(((one > 0) & (other > 0)).sum() / ((one > 0) | (other > 0)).sum())
    assert found.pairs.correlation.abs().is_monotonic_decreasing and 0 < found.chance < 1
    assert (np.diff(of.rates[found.features]) <= 0).all()


def test_labels_are_text_and_numbers_are_quarters():
    heard = pd.DataFrame({
        "id": list("abcdefghijklmnop"), "path": "p", "split": "train", "text": "same", "speaker": ["v", "w"] * 8,
        "gender": "", "duration": np.arange(16.0), "age": ["", *map(str, range(15))], "room": ["1", "2"] * 8,
    })  # fmt: skip
    averaged = pd.DataFrame({"clip": [0, 3, 5, *range(6, 16)], "silence": np.linspace(0, 1, 13)})
    found, why = clip_clusters.labels_of(heard, averaged)
    assert why == {"text": "the same everywhere", "gender": "not known of any clip"}
    assert list(found) == ["speaker", "duration", "age", "room", "silence"] and found.index.tolist()[:3] == [0, 3, 5]
    assert found.speaker[3] == "w" and set(found.room) == {"1", "2"} and found.age[0] == ""
    assert found.duration.nunique() == found.silence.nunique() == 4


def test_sounds_say_who_says_what(made):
    here = made(voices=3, clips=2)
    (label, sound), (silent, _) = clip_clusters.sounds(
        here.heard.assign(text=["a <b>", *[""] * 5]), {1: np.array([0, 1])}, 0.5
    )
    assert label == "cluster 2 · female: “a <b>”" and silent == "cluster 2 · female: no words"
    np.testing.assert_array_equal(sound, clip_table.samples(here.heard.path[0])[:8000])
