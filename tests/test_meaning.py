"""The index of a site holds what the dictionary, the neurons or their rivals say of every clip, and knows when."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from whisper_sae import cache
from whisper_sae.activations import store
from whisper_sae.experiments import feature_index, phone_tables, pipeline, sae_comparison
from whisper_sae.features import index, index_builder
from whisper_sae.sae import architectures

SITE = "encoder.1.resid"


@pytest.fixture
def made(small_whisper, corpus, run_for, data):
    """A small profile of which all is recorded and a dictionary is trained: its `run` and the rows of the site."""

    def prepare(**fields):
        folder = data.parent / "voices"
        run = run_for(small_whisper, folder if folder.exists() else corpus(), tokens=2_000, **fields)
        cache.make(pipeline.clips(run, 0))
        heard = cache.make(pipeline.activations(run, 0))
        cache.make(sae_comparison.dictionary(run, 0, SITE))
        return run, store.Activations(heard.path).rows(SITE)

    return prepare


@pytest.mark.parametrize("windows", ["clip", "packed"])
@pytest.mark.parametrize("variant", ["batchtopk", "topk", "jumprelu", "relu"])
def test_the_index_is_what_the_dictionary_says(made, variant, windows):
    run, rows = made(variant=variant, windows=windows)
    step = cache.make(feature_index.codes(run, 0, SITE))
    found, coder = index.Index(step.path), architectures.load(cache.need(sae_comparison.dictionary(run, 0, SITE)).path)
    with torch.no_grad():
        right = torch.cat([coder.encode(x) for x in rows.chunks(500)]).numpy()
    kept = found.columns(0, found.features).toarray()
    assert kept.shape == right.shape and step.facts["rows"] == len(rows) and not found.signed
    near = np.abs(right) < 1e-3 * right.max()  # products of other sizes round differently
    assert (((kept != 0) == (right != 0)) | near).mean() > 0.9999
    both = (kept != 0) & (right != 0)
    assert both.sum() > 100 and (np.abs(kept[both] / right[both] - 1) < 2e-3).all()
    np.testing.assert_array_equal(np.diff(found.starts), rows.counts)


def test_neurons_and_principal_directions_have_two_sides(made):
    run, rows = made()
    x = rows.take(np.arange(len(rows))).numpy()
    train, _ = sae_comparison.frames_of(
        run, cache.need(pipeline.clips(run, 0)), cache.need(pipeline.activations(run, 0)), SITE, "train"
    )
    learnt = train.take(np.arange(len(train))).numpy()
    centred = x - learnt.mean(axis=0)
    step = cache.make(feature_index.codes(run, 0, SITE, of="neurons"))
    np.testing.assert_allclose(step.array("mean.npy"), learnt.mean(axis=0), atol=1e-5)
    found = index.Index(step.path)
    assert found.signed and found.features == 32
    both = found.columns(0, 64).toarray()
    np.testing.assert_allclose(both[:, :32] - both[:, 32:], centred, atol=2e-3 * np.abs(centred).max())
    found = index.Index(cache.make(feature_index.codes(run, 0, SITE, of="principal directions")).path)
    told = np.stack([found.columns(j, j + 1).toarray()[:, 0] for j in range(64)], axis=1)
    said = told[:, :32] - told[:, 32:]
    variance = said.var(axis=0)
    assert variance[:4].min() > variance[-4:].max(), "in their order"
    np.testing.assert_allclose(np.square(said).sum(axis=1), np.square(centred).sum(axis=1), rtol=1e-2)


def test_the_random_dictionary_fires_as_much_as_the_trained_one(made):
    run, rows = made()
    trained = cache.need(sae_comparison.dictionary(run, 0, SITE))
    found = index.Index(cache.make(feature_index.codes(run, 0, SITE, of="random dictionary")).path)
    assert found.features == architectures.load(trained.path).d_sae
    assert found.rates.sum() == pytest.approx(round(trained.facts["l0"]), rel=0.05)
    began = architectures.create("topk", 32, 128, round(trained.facts["l0"]), 0)
    began.start_on(rows.sample(4096, 0))
    ours = index.Index(cache.make(feature_index.codes(run, 0, SITE)).path)
    fires = [one.columns(0, 128).toarray() > 0 for one in (found, ours)]
    with torch.no_grad():
        fires.append(began.encode(rows.take(np.arange(len(rows)))).numpy() > 0)
    for other in fires[1:]:
        assert (fires[0] & other).sum() < 0.3 * fires[0].sum(), "another than the trained one, and than where it began"


def test_the_key_is_of_what_the_index_depends_on(made, run_for):
    run, _ = made()
    keys = {
        feature_index.codes(*asked, **how).key
        for asked, how in [
            ((run, 0, SITE), {}), ((run, 0, SITE), {"of": "neurons"}), ((run, 0, SITE), {"of": "random dictionary"}),
            ((run, 0, SITE), {"of": "principal directions"}), ((run, 0, "encoder.0.resid"), {}),
            ((run, 0, SITE), {"own_seed": 3}), ((run, 0, SITE), {"frozen": "encoder"}),
            ((replace(run, k=3), 0, SITE), {}),
        ]
    }  # fmt: skip
    assert len(keys) == 8
    assert (
        feature_index.codes(replace(run, k=3), 0, SITE, "neurons").key
        == feature_index.codes(run, 0, SITE, "neurons").key
    )
    assert feature_index.codes(replace(run, sweep_k=(9,)), 0, SITE).key == feature_index.codes(run, 0, SITE).key
    with pytest.raises(ValueError, match="of: 'words' is not one of dictionary, neurons"):
        feature_index.codes(run, 0, SITE, "words")


def test_it_needs_the_dictionary(made):
    run, _ = made()
    with pytest.raises(cache.NotMade, match="dictionary of encoder"):
        cache.make(feature_index.codes(replace(run, k=3), 0, SITE))
    with pytest.raises(cache.NotMade, match=r"'index of the dictionary of encoder\.1\.resid' has not been made"):
        feature_index.examples_in(run, 0, SITE)


def test_a_build_that_was_stopped_goes_on(made, monkeypatch):
    run, _ = made()
    recipe, calls = feature_index.codes(run, 0, SITE), []
    plain, forward = index_builder.build, feature_index.Calls.forward
    monkeypatch.setattr(index_builder, "build", lambda *given, **how: plain(*given, **how, chunk=100, held=2_000))

    @functools.wraps(forward)
    def stops(self, x):
        calls.append(len(x))
        if len(calls) == 9:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(feature_index.Calls, "forward", stops)
    with pytest.raises(KeyboardInterrupt):
        cache.make(recipe)
    with pytest.raises(cache.NotMade):
        cache.need(recipe)
    step = cache.make(recipe)
    whole = index.Index(step.path).rows
    assert sum(calls) - calls[8] < 1.5 * whole, "what was finished is not said again"
    assert not list(step.path.glob("*run*")) and step.facts["rows"] == whole
    step.verify()


# ---------------------------------------------------------------------------------------------------- examples


def test_examples_are_at_the_right_moment_of_the_right_clip(made):
    """A value is what the model says of the frame at that moment of that clip, also where clips were packed or cut."""
    for windows in ("clip", "packed"):
        run, _ = made(windows=windows)
        cache.make(feature_index.codes(run, 0, SITE))
        drawn = feature_index.examples_in(run, 0, SITE)
        clips = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
        heard = cache.need(pipeline.activations(run, 0))
        rows, told = store.Activations(heard.path).rows(SITE), heard.table("windows.csv")
        coder = architectures.load(cache.need(sae_comparison.dictionary(run, 0, SITE)).path)
        feature = int(drawn.index.rates.argmax())
        found = drawn.of(feature)
        assert {"loudest", "random", "decile 10"} <= set(found.kind) and (found.speaker != "").all()
        for row in found.itertuples():
            assert 0 < row.seconds < clips.duration[row.clip] + 0.02
            piece = told[(told["clip"] == row.clip) & (told["first"] <= row.seconds * 16_000)].index[-1]
            inside = int(row.seconds * 16_000 - told["first"][piece]) // 320
            x = torch.from_numpy(rows.source.window(SITE, piece)[inside].astype(np.float32))
            with torch.no_grad():
                said = coder.encode(x[None])[0, feature].item()
            assert said == pytest.approx(row.value, rel=2e-3, abs=1e-3)


def test_the_decoder_has_no_seconds(made):
    run, _ = made()
    with pytest.raises(ValueError, match=r"site: rows of decoder\.0\.resid are tokens"):
        feature_index.examples_in(run, 0, "decoder.0.resid")


def test_words_are_those_of_the_corpus(made, data):
    run, _ = made()
    clips = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    assert phone_tables.words_of(run, clips).empty
    folder, first = data.parent / "voices", [Path(path).name for path in clips.path[:2]]
    rows = [(f"audio/{first[1]}", 100, 200, "b"), (f"audio/{first[0]}", 50, 90, "NA"), ("audio/none.flac", 1, 2, "x")]
    table = pd.DataFrame(rows, columns=["file_name", "start_ms", "end_ms", "word"])
    table.to_csv(folder / "words.csv", index=False)
    found = phone_tables.words_of(run, clips)
    assert found.values.tolist() == [[0, 0.05, 0.09, "NA"], [1, 0.1, 0.2, "b"]]
    cache.make(feature_index.codes(run, 0, SITE))
    drawn = feature_index.examples_in(run, 0, SITE)
    assert drawn._word(0, 0.07) == "NA" and drawn._word(0, 0.09) == "" and "word" in drawn.loudest(0)
    table.drop(columns="end_ms").to_csv(folder / "words.csv", index=False)
    with pytest.raises(ValueError, match=r"words\.csv: .*end_ms"):
        phone_tables.words_of(run, clips)
    (folder / "words.csv").unlink()
    told = table.rename(columns={"word": "phone"}).assign(word=["ring", "ring", ""], word_index=[0, 0, -1])
    told["file_name"] = f"audio/{first[0]}"
    told.to_csv(folder / "phones.csv", index=False)
    assert phone_tables.words_of(run, clips).values.tolist() == [[0, 0.05, 0.2, "ring"]]
