"""Voices asked of every feature: frames of speech by hand; what is planted is found, and lots find nothing."""

import numpy as np
import pandas as pd
import pytest
import torch
from speakers import people

from whisper_sae import cache
from whisper_sae.activations import store
from whisper_sae.data import clip_table
from whisper_sae.experiments import feature_index, pipeline, sae_comparison, speakers
from whisper_sae.sae import architectures

SITE = "encoder.1.resid"


@pytest.fixture
def made(small_whisper, corpus, run_for, data):
    """A run with its clips, activations and dictionary, the table of clips, and its step of `of_features`."""

    def prepare(of="dictionary", **fields):
        run = run_for(small_whisper, corpus(voices=14, clips=3), tokens=2_000, **fields)
        clips, acts = cache.make(pipeline.clips(run, 0)), cache.make(pipeline.activations(run, 0))
        trained = cache.make(sae_comparison.dictionary(run, 0, SITE))
        cache.make(feature_index.codes(run, 0, SITE, of))
        return run, pipeline.table(run, clips), acts, trained, cache.make(speakers.of_features(run, 0, SITE, of))

    return prepare


@pytest.mark.parametrize("windows", ["clip", "packed"])
def test_a_clip_is_what_its_frames_of_speech_say(made, windows, monkeypatch):
    monkeypatch.setattr(speakers, "FIRINGS", 300)  # several blocks
    _, _, acts, trained, step = made(windows=windows)
    held, coder = store.Activations(acts.path), architectures.load(trained.path)
    of = acts.table("windows.csv")["clip"].to_numpy()
    told, rate, when = step.table("clips.csv"), step.array("rate.npy"), step.array("when_firing.npy")
    assert len(told) and np.isnan(when).any() and step.facts["sides"] == coder.d_sae == rate.shape[1]
    for row in range(0, len(told), 5):
        parts = [
            held.window(SITE, n)[held.kinds[n][held.kinds[n] > 0] == clip_table.SPEECH]
            for n in np.flatnonzero(of == told["clip"][row])
        ]
        with torch.no_grad():
            f = coder.encode(torch.from_numpy(np.concatenate(parts).astype(np.float32))).numpy()
        assert told.frames[row] == len(f)
        np.testing.assert_allclose(rate[row], (f > 0).mean(axis=0), atol=1.01 / len(f))
        fires = (f > 0).any(axis=0) & (rate[row] > 0)
        strong = f.sum(axis=0)[fires] / (f > 0).sum(axis=0)[fires]
        assert np.median(np.abs(when[row][fires] / strong - 1)) < 5e-3
        np.testing.assert_allclose(speakers.values(step, "mean")[row], f.mean(axis=0), rtol=1e-2, atol=1e-2)


def test_speakers_are_in_one_order_everywhere(made):
    _, heard, _, _, step = made()
    heard = heard.assign(level=np.arange(len(heard), dtype=float))
    cast = speakers.cast(step, heard)
    told = speakers.covariates(step, heard)
    assert list(cast.labels) == ["gender"] and list(cast.labels.index) == list(told.index) == sorted(set(heard.speaker))
    assert told.level.to_numpy() == pytest.approx(heard.groupby("speaker")["level"].mean().to_numpy())
    assert speakers.answerable(cast, "gender") and speakers.groups_of(cast, "gender") == ("female", "male")


def test_what_was_kept_and_dropped_is_counted(small_whisper, corpus, run_for, data):
    run = run_for(small_whisper, corpus(voices=14, clips=3), tokens=2_000, clips_per_speaker=2)
    heard = pipeline.table(run, cache.make(pipeline.clips(run, 0)))
    cache.make(pipeline.activations(run, 0)), cache.make(sae_comparison.dictionary(run, 0, SITE))
    cache.make(feature_index.codes(run, 0, SITE))
    table = speakers.sampled(run, 0, cache.make(speakers.of_features(run, 0, SITE)), heard, "gender").set_index("group")
    assert table.clips.tolist() == [21, 21] and table.kept.tolist() == [14, 14] and table.dropped.tolist() == [7, 7]
    assert table.speakers.tolist() == table.speakers_kept.tolist() == [7, 7] and set(table.most) == {2}


# ------------------------------------------------------------------------------------------ without a model


def test_labels_are_of_speakers_not_of_clips_nor_numbers():
    heard = pd.DataFrame({
        "speaker": ["a", "a", "b", "b", "c", "c", "d", "d", ""], "text": list("abcdefghi"), "gender": [*"ffmmffmm", ""],
        "age": ["30", "30", "40", "40", "30", "30", "40", "40", ""], "mood": ["glad", "sad"] * 4 + [""],
        "room": ["one"] * 8 + ["two"], "accent": [*"xxxxyyyy", "z"], "id": list("abcdefghi"),
    })  # fmt: skip
    assert speakers.labels_of(heard) == ["gender", "accent"]
    cast = people()
    assert speakers.crossed(cast, "gender", "accent") and not speakers.crossed(cast, "gender", "gender")


def test_pairs_are_one_of_each_group_and_say_it_equally_strongly():
    class Shelf:
        def loudest(self, feature, n, per_speaker):
            assert per_speaker == 1
            return pd.DataFrame({"clip": range(6), "speaker": list("abcdef"), "value": [9.0, 5.1, 2.0, 5.0, 4.0, 1.9]})

    heard = pd.DataFrame({"gender": ["female"] * 3 + ["male"] * 3, "speaker": list("abcdef")})
    found = speakers.alike(Shelf(), heard, 0, "gender", ("female", "male"), 1)
    assert found.kind.tolist() == ["female b", "male d"] and found.value.tolist() == [5.1, 5.0]
    assert len(speakers.alike(Shelf(), heard, 0, "gender", ("female", "male"), 9)) % 2 == 0
    assert speakers.alike(Shelf(), heard.assign(gender="female"), 0, "gender", ("female", "male")).empty
