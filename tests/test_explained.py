"""What is measured belongs to the row that it stands beside, and the tables are of the features of the index."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from whisper_sae import cache
from whisper_sae.activations import store
from whisper_sae.data import clip_table
from whisper_sae.experiments import correlates_of_features, feature_index, pipeline, sae_comparison
from whisper_sae.features import acoustics, index

SITE = "encoder.1.resid"


@pytest.fixture
def made(small_whisper, corpus, run_for, data):
    """A small profile of which a dictionary's index is made; every other clip has one of two labels."""

    def prepare(inputs=("dictionary",), nobody=False, **fields):
        folder = data.parent / "voices"
        if not folder.exists():
            table = pd.read_csv(corpus() / "metadata.csv")
            table["label"] = ["", "low", "", "high"] * (len(table) // 4)
            table["fold"] = np.arange(len(table)) // 4 % 3
            if nobody:  # sounds are by nobody, and somebody's clip has a label as well
                known = [name for name in ("speaker", "text", "gender", "accent") if name in table]
                table.loc[table.label != "", known] = ""
                table.loc[0, "label"] = "low"
            table.to_csv(folder / "metadata.csv", index=False)
        run = run_for(small_whisper, folder, tokens=2_000, **fields)
        for recipe in (pipeline.clips(run, 0), pipeline.activations(run, 0), sae_comparison.dictionary(run, 0, SITE)):
            cache.make(recipe)
        for of in inputs:
            cache.make(feature_index.codes(run, 0, SITE, of))
        return run

    return prepare


@pytest.mark.parametrize("windows", ["clip", "packed"])
def test_what_is_measured_belongs_to_its_row(made, windows):
    run = made(windows=windows)
    told = correlates_of_features.measures(cache.make(correlates_of_features.acoustics_of(run, 0)))
    heard = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    step = cache.need(pipeline.activations(run, 0))
    held, pieces = store.Activations(step.path), step.table("windows.csv")
    assert len(told) == held.counts.sum() and list(told)[:-1] == [*acoustics.MEASURES, *acoustics.EVENTS]
    assert told["word boundary"].isna().all()
    assert held.counts.max() == 100 and (pieces["first"] > 0).any(), "some clips fill a window and go on in the next"
    ends = np.cumsum(held.counts)
    for number, (end, count) in enumerate(zip(ends, held.counts, strict=True)):
        mine, (clip, first) = told.iloc[end - count : end], pieces.loc[number, ["clip", "first"]]
        sound = clip_table.samples(heard.path[clip])[first : first + pieces.samples[number]]
        level = 10 * np.log10(np.square(sound[:160]).sum() / 320 + 1e-12)  # frame 0 is centred on the first sample
        assert mine.energy.iloc[0] == pytest.approx(level, abs=1e-3)
        assert (mine.position.to_numpy() == np.float32(np.arange(count) * 0.02)).all()
        full = pieces["at"][number] + count == 100
        assert mine["padding edge"].isna().all() if full else mine["padding edge"].sum() == min(3, count)


def test_a_word_boundary_is_where_a_word_starts_or_ends(made, data):
    words = pd.DataFrame({"start": [0.1, 0.3], "end": [0.3, 0.5], "word": ["a", "b"]})
    moments = np.arange(30) * 0.02
    found = correlates_of_features.boundaries(words, moments)
    near = np.abs(moments[:, None] - [0.1, 0.3, 0.5]).min(axis=1) <= 0.03 + 1e-9
    assert (found == near).all() and found.sum() == 9
    assert (
        np.isnan(correlates_of_features.boundaries(None, moments)).all()
        and np.isnan(correlates_of_features.boundaries(words[:0], moments)).all()
    )
    run = made()
    before = correlates_of_features.acoustics_of(run, 0).key
    heard = pipeline.table(run, cache.need(pipeline.clips(run, 0)))
    file = "audio/" + heard.path[1].rpartition("/")[2]
    table = pd.DataFrame({"file_name": [file], "start_ms": [40], "end_ms": [160], "word": ["ring"]})
    table.to_csv(data.parent / "voices" / "words.csv", index=False)
    recipe = correlates_of_features.acoustics_of(run, 0)
    assert recipe.key != before
    told = correlates_of_features.measures(cache.make(recipe))["word boundary"]
    pieces = cache.need(pipeline.activations(run, 0)).table("windows.csv")
    count = store.Activations(cache.need(pipeline.activations(run, 0)).path).counts
    clip = np.repeat(pieces["clip"].to_numpy(), count)
    assert told[clip == 1].notna().all() and told[clip != 1].isna().all()
    assert np.flatnonzero(told[clip == 1] == 1).tolist() == [1, 2, 3, 7, 8, 9]


def test_a_table_of_features(made):
    run = made()
    told = correlates_of_features.features(run, 0, SITE, shifts=20)
    found = index.Index(cache.need(feature_index.codes(run, 0, SITE)).path)
    assert len(told) == found.features and told.index.name == "feature"
    assert list(told) == ["flag", "measure", "correlation", "low", "high", "auc", "explained", "q", "fires", "wears"]
    np.testing.assert_allclose(told.fires, found.rates, atol=1e-6)
    step = cache.need(correlates_of_features.correlates_of(run, 0, SITE, shifts=20))
    assert step.facts["speakers"] == 6 and step.facts["frames"] == found.rows
    names = cache.need(correlates_of_features.acoustics_of(run, 0)).table("measures.csv").measure.tolist()
    for name in correlates_of_features.TABLES:
        assert step.array(f"{name}.npy").shape == (found.features, len(names))
    known = told[told.measure != ""]
    column = [names.index(one) for one in known.measure]
    np.testing.assert_allclose(step.array("explained.npy")[known.index, column], known.explained, rtol=1e-4)
    few = cache.make(correlates_of_features.correlates_of(run, 0, SITE, shifts=20, most=200))
    assert 200 <= few.facts["frames"] < 350 and few.key != step.key


def test_environmental_sounds_by_every_input(made):
    run = made(inputs=feature_index.INPUTS, nobody=True)
    inputs, classes = correlates_of_features.kinds_of_sounds(run, 0, SITE, shuffles=20)
    assert inputs.input.tolist() == list(feature_index.INPUTS) and inputs.sides.tolist() == [128, 64, 64, 128]
    assert (inputs.clips == 12).all() and (inputs.ahead[0], inputs.ahead_low[0], inputs.ahead_high[0]) == (0, 0, 0)
    assert len(classes) == 8 and set(classes.label) == {"low", "high"} and (classes.folds <= 3).all()
    assert ((inputs.low <= inputs.auc + 1e-9) & (inputs.auc <= inputs.high + 1e-9)).all()
    loudest, _ = correlates_of_features.kinds_of_sounds(run, 0, SITE, shuffles=20, way="maximum")
    assert not loudest.auc.equals(inputs.auc)


def test_the_decoder_has_no_sound_of_its_own(made):
    run = replace(made(), sites=("encoder.*.resid", "decoder.*.resid"))
    for recipe in (correlates_of_features.correlates_of, correlates_of_features.sounds_of):
        with pytest.raises(ValueError, match=r"site: rows of decoder\.0\.resid are tokens"):
            recipe(run, 0, "decoder.0.resid")


def test_the_index_is_needed(made):
    run = made()
    with pytest.raises(cache.NotMade, match=r"'index of the neurons of encoder\.1\.resid' has not been made"):
        correlates_of_features.features(run, 0, SITE, "neurons")
