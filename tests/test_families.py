"""A planted split is linked, what was absorbed is counted, and strangers have no parent."""

import numpy as np
import pytest
from scipy.sparse import csc_array

from whisper_sae.features import families


@pytest.fixture
def world():
    """Parent 0 says a or b; the larger dictionary has a feature for each, children 0 and 1. Parent 1 lives on as child
    2, but for the third of its frames that child 3 took. Parent 2 and children 4 to 7 have nobody; 3 and 8 are silent.
    """
    rng, frames, d = np.random.default_rng(0), 6000, 48
    what = rng.integers(0, 6, frames)  # a, b, c, c that is absorbed, and two of nothing
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
    small = np.stack([axes[0] + axes[1], axes[2], axes[3], axes[4]])
    large = np.stack([axes[0], axes[1], axes[2], axes[2] + axes[5], *axes[6:10], axes[11]])
    some = rng.random((frames, 5)) < 0.1
    parents = np.stack([what < 2, (what == 2) | (what == 3), some[:, 4], np.zeros(frames, bool)], axis=1)
    kids = [what == 0, what == 1, what == 2, what == 3, *some[:, :4].T, np.zeros(frames, bool)]
    strength = rng.uniform(1, 2, (frames, 1))
    codes = [csc_array((each * strength).astype(np.float32)) for each in (parents, np.stack(kids, axis=1))]
    return small, large, *codes


def test_a_planted_split_is_linked(world):
    found = families.families(*world)
    kids = found.children.set_index("child")
    assert kids.linked.to_dict() == {n: n < 4 for n in range(8)}, "the silent ones are not asked"
    assert kids.parent[:4].tolist() == [0, 0, 1, 1]
    assert kids.inside[:4].tolist() == [1, 1, 1, 1] and kids.cosine[0] == pytest.approx(0.5**0.5)
    assert kids.chance[0] == pytest.approx(1 / 3, abs=0.02)
    parents = found.parents.set_index("parent")
    assert parents.children.to_dict() == {0: 2, 1: 2, 2: 0}
    assert parents.lost[:2].to_numpy() == pytest.approx([0, 0]) and np.isnan(parents.lost[2])
    assert parents["first"][1] == pytest.approx(0.5, abs=0.03)
    assert (parents["first"] + parents.absorbed + parents.lost).dropna().to_numpy() == pytest.approx([1, 1])
    assert (found.linked, found.split) == (4, 2) and found.by_chance < 3


def test_a_child_must_fire_with_its_parent(world):
    """The same directions, the children's firings dealt anew: nobody is linked, however near."""
    small, large, said, told = world
    order = np.random.default_rng(1).permutation(told.shape[0])
    found = families.families(small, large, said, told[order])
    assert found.linked == 0 and found.split == 0 and (found.parents.children == 0).all()
    assert found.children.cosine.max() > 0.9


def test_a_dictionary_is_its_own_family(world):
    _, large, _, told = world
    found = families.families(large, large, told, told)
    assert (found.children.child == found.children.parent).all() and found.split == 0
    assert found.parents["first"].to_numpy() == pytest.approx(np.ones(8)) and found.parents.lost.max() == 0


def test_what_cannot_be(world):
    small, large, said, told = world
    with pytest.raises(ValueError, match="do not fit"):
        families.families(small, large, said, told[:10])
    with pytest.raises(ValueError, match="none of a dictionary ever fires"):
        families.families(small, large, said, told * 0)
