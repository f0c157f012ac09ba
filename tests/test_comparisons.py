"""What sets clips and groups apart is what was planted, and speakers count once."""

import numpy as np
import pandas as pd
import pytest

from whisper_sae.explorer import comparisons
from whisper_sae.features import index, index_builder
from whisper_sae.stats import effects


def test_two_clips_are_compared_by_shares_of_what_features_can_say():
    a, b, farthest = np.array([10.0, 1, 0, 0, 2]), np.array([5.0, 0, 0, 3, 2]), np.array([100.0, 1, 9, 4, 2])
    found = comparisons.of_clips(a, b, farthest)
    assert found.feature.tolist() == [1, 3, 0, 4] and found.difference.tolist() == [1, -0.75, 0.05, 0]
    assert found.a.tolist() == [1, 0, 10, 2]


@pytest.mark.parametrize("signed", [False, True])
def test_groups_are_compared_over_speakers(tmp_path, signed, monkeypatch):
    monkeypatch.setattr(comparisons, "BLOCK", 3)
    rng = np.random.default_rng(0)
    clips = pd.DataFrame({"speaker": [f"v{n // 3}" for n in range(30)] + [""]})
    piece_of = np.sort(np.concatenate([np.arange(31), rng.integers(0, 31, 9)]))  # some clips have several
    counts = rng.integers(2, 9, len(piece_of))
    dense = rng.normal(size=(counts.sum(), 7)).astype(np.float32)
    dense[:, 6] = 0
    first = np.repeat(piece_of < 15, counts)
    dense[first, 4] += 3
    dense = dense if signed else np.maximum(dense, 0)
    index_builder.build(tmp_path / "i", counts, lambda x, y: dense[x:y], 7, signed=signed)
    side = np.where(np.arange(31) < 15, "a", "b")
    found = comparisons.of_groups(index.Index(tmp_path / "i"), piece_of, clips, side)
    of_row = np.repeat(piece_of, counts)
    means = np.stack([dense[of_row == clip].mean(axis=0) for clip in range(30)])
    cast = np.stack([means[3 * n : 3 * n + 3].mean(axis=0) for n in range(10)])
    told = effects.between(cast, ["a"] * 5 + ["b"] * 5)
    assert found.feature[0] == 4 and set(found.feature) == set(range(6)), "who never fires is left out"
    np.testing.assert_allclose(found.difference, told.d[found.feature], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found.a, cast[:5].mean(axis=0)[found.feature], rtol=2e-3, atol=1e-3)
    assert found.speakers_a.eq(5).all() and found.difference.abs().is_monotonic_decreasing


def test_what_a_corpus_alone_tells_does_not_set_groups_apart(tmp_path):
    """Ten women and two men in one corpus, two and ten in the other; feature 0 is of the corpus, feature 1 of women."""
    corpus, women = np.repeat(["x", "y"], 12), np.repeat([True, False, True, False], [10, 2, 2, 10])
    dense = np.abs(np.random.default_rng(0).normal(size=(24, 2))).astype(np.float32) / 4 + 1
    dense[corpus == "x", 0] += 3
    dense[women, 1] += 3
    index_builder.build(tmp_path / "i", np.ones(24, int), lambda x, y: dense[x:y], 2)
    clips, side = pd.DataFrame({"speaker": [f"v{n}" for n in range(24)]}), np.where(women, "a", "b")
    given = index.Index(tmp_path / "i"), np.arange(24), clips
    across, within = (comparisons.of_groups(*given, side, fixed).set_index("feature") for fixed in (None, corpus))
    assert across.difference[0] > 1.5 and abs(within.difference[0]) < 0.8
    assert across.difference[1] > 3 and within.difference[1] > 3
    with pytest.raises(ValueError, match="none has both a and b"):
        comparisons.of_groups(*given, np.where(corpus == "x", "a", "b"), corpus)


def test_a_group_of_one_speaker_is_refused(tmp_path):
    dense = np.ones((6, 2), np.float32)
    index_builder.build(tmp_path / "i", np.array([2, 2, 2]), lambda x, y: dense[x:y], 2)
    clips = pd.DataFrame({"speaker": ["v0", "v1", "v2"]})
    with pytest.raises(ValueError, match="1 speakers are 'b'; at least 2"):
        comparisons.of_groups(index.Index(tmp_path / "i"), np.arange(3), clips, np.array(["a", "a", "b"]))
