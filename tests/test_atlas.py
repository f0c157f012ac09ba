"""What the page of maps and clusters is drawn from: means of valid frames, in order, or a reason why there are none."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from whisper_sae import activations, atlas, clusters, dictionaries, index, meaning, recipes, sae, speech, store

SITE = "encoder.1.resid"


@pytest.fixture
def made(small_whisper, corpus, run_for, data):
    """All that the recipes need: the run, its clips, its index and the means of its clips."""

    def prepare(voices=6, clips=4, **fields):
        run = run_for(small_whisper, corpus(voices=voices, clips=clips), tokens=2_000, **fields)
        told = store.make(recipes.clips(run, 0))
        acts = store.make(recipes.activations(run, 0))
        trained = store.make(dictionaries.dictionary(run, 0, SITE))
        codes = store.make(meaning.codes(run, 0, SITE))
        averaged = store.make(atlas.means(run, 0, SITE))
        return SimpleNamespace(
            run=run, heard=recipes.table(run, told), acts=acts, trained=trained, codes=codes, averaged=averaged
        )

    return prepare


@pytest.mark.parametrize("windows", ["clip", "packed"])
def test_means_are_over_the_valid_frames_of_a_clip_and_of_all_its_windows(made, windows, monkeypatch):
    monkeypatch.setattr(atlas, "FIRINGS", 300)  # several blocks
    here = made(windows=windows)
    held, coder = activations.Activations(here.acts.path), sae.load(here.trained.path)
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
        assert told.silence[row] == pytest.approx((kinds == speech.SILENCE).mean())


def test_blocks_cover_every_feature_once_and_bound_what_is_read(monkeypatch):
    monkeypatch.setattr(atlas, "FIRINGS", 10)
    of = SimpleNamespace(features=6, firings=np.array([0, 4, 8, 30, 30, 31, 40, 99]))
    assert atlas._blocks(of) == [(0, 2), (2, 3), (3, 6)]
    assert atlas._blocks(SimpleNamespace(features=3, firings=np.zeros(4, int))) == [(0, 3)]


def test_clusters_maps_and_forests_are_of_the_clips_in_their_order(made):
    here = made()
    grouped = store.make(atlas.grouped(here.run, 0, SITE, True))
    found = atlas.clusters_of({"": grouped})[""]
    x = atlas.rows_of(here.averaged, found.index)
    again = clusters.find(x[:, (x != x[:1]).any(axis=0)])
    assert grouped.facts["clusters"] == again.clusters and found.tolist() == again.cluster.tolist()
    assert atlas.silhouettes_of({"": grouped})[""].clusters.tolist() == again.table.clusters.tolist()
    islands, way, trust = atlas.tables_of(store.make(atlas.mapped(here.run, 0, SITE)))
    assert islands["clip"].tolist() == list(range(24))
    assert (index.Index(here.codes.path).rates[way.feature] > 0).all() and set(trust.of) == {"clips", "directions"}
    read = store.make(atlas.forests(here.run, 0, SITE)).table("read.csv")
    assert read.split.tolist() == ["frames", "speakers", "frames"] and read.speakers.tolist() == [6, 6, 6]


def test_a_dictionary_half_as_large_lives_on(made, monkeypatch):
    monkeypatch.setattr(atlas, "MOST_TOGETHER", 900)  # some of the rows
    here = made(expansion=4)
    for recipe in atlas.smaller(here.run, 0, SITE):
        store.make(recipe)
    step = store.make(atlas.families_of(here.run, 0, SITE))
    children, parents = step.table("children.csv"), atlas.parents_of(step)
    assert parents.lost.isna().equals(parents.children == 0) and parents.lost.dropna().between(0, 1).all()
    assert step.facts["latents"] == 2 * here.acts.facts["sites"][SITE] and 900 <= step.facts["frames"] < 1100
    assert step.facts["linked"] == children.linked.sum() == parents.children.sum()
    assert len(children) <= 4 * here.acts.facts["sites"][SITE] and (children.inside[children.linked] >= 0.5).all()
    with pytest.raises(ValueError, match="expansion: 3 cannot be halved"):
        atlas.families_of(replace(here.run, expansion=3), 0, SITE)


def test_too_little_of_everything_gives_reasons_and_no_tables(made):
    here = made(voices=3, clips=1)
    grouped = store.make(atlas.grouped(here.run, 0, SITE, True))
    assert grouped.facts["clusters"] == 0 and "too few to look for clusters" in grouped.facts["why"]
    assert atlas.clusters_of({"": grouped}) == atlas.silhouettes_of({"": grouped}) == {}
    laid = store.make(atlas.mapped(here.run, 0, SITE))
    islands, _, _ = atlas.tables_of(laid)
    assert islands.empty and "too few for a map" in laid.facts["why_clips"]
    assert "two with two speakers" in store.make(atlas.forests(here.run, 0, SITE)).facts["why"]
    assert "two with two speakers" in store.make(atlas.forests(here.run, 0, SITE, "accent")).facts["why"]


def test_only_clips_with_words_are_spoken(made):
    here = made()
    heard = here.heard.assign(text=np.where(here.heard.index < 5, "", here.heard.text))
    assert atlas.drawn(here.averaged, heard, True, 0)[1].tolist() == list(range(5, 24))
    x, clip = atlas.drawn(here.averaged, heard, False, 0)
    assert len(clip) == 24 and (x.std(axis=0) > 0).all()
    assert atlas.drawn(here.averaged, heard.assign(text=""), True, 0)[0].shape[0] == 0


def test_features_go_together_as_their_codes_do(made):
    here = made()
    found = atlas.joint(here.codes, here.trained, 10)
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
    found, why = atlas.labels_of(heard, averaged)
    assert why == {"text": "the same everywhere", "gender": "not known of any clip"}
    assert list(found) == ["speaker", "duration", "age", "room", "silence"] and found.index.tolist()[:3] == [0, 3, 5]
    assert found.speaker[3] == "w" and set(found.room) == {"1", "2"} and found.age[0] == ""
    assert found.duration.nunique() == found.silence.nunique() == 4


def test_sounds_say_who_says_what(made):
    here = made(voices=3, clips=2)
    (label, sound), (silent, _) = atlas.sounds(here.heard.assign(text=["a <b>", *[""] * 5]), {1: np.array([0, 1])}, 0.5)
    assert label == "cluster 2 · female: “a <b>”" and silent == "cluster 2 · female: no words"
    np.testing.assert_array_equal(sound, speech.samples(here.heard.path[0])[:8000])
