"""Controls are like their target, p is even where nothing is, and small where something is."""

import numpy as np
import pytest
from scipy import stats

from whisper_sae import controls


def test_controls_fire_as_often_and_are_as_long():
    rng = np.random.default_rng(0)
    rate, size = rng.lognormal(-4, 2, 600), rng.lognormal(0, 1, 600)
    chosen = controls.matched(rate, size, 7, range(600), 10, rng)
    assert len(set(chosen)) == 10 and 7 not in chosen
    for part in (rate, size):
        near = np.abs(np.log(part[chosen] / part[7])).mean()
        assert near < 0.5 * np.abs(np.log(part / part[7])).mean()
    assert set(controls.matched(rate, size, 7, [1, 2, 3, 7], 3, rng)) == {1, 2, 3}
    with pytest.raises(ValueError, match="3 features cannot give 4"):
        controls.matched(rate, size, 7, [1, 2, 3, 7], 4, rng)


@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_p_is_even_where_targets_are_like_their_controls(kind):
    """Tests of unlike size, as phones are, and effects with long tails, as features have."""
    rng, p = np.random.default_rng(1), []
    for _ in range(40):
        scale = rng.lognormal(0, 1, (30, 1))
        drawn = rng.standard_normal((30, 21)) if kind == "normal" else rng.lognormal(0, 1, (30, 21))
        values = scale * drawn
        p.append(controls.beyond(values[:, 0], values[:, 1:]).p)
    p = np.concatenate(p)
    assert controls.evenness(p[::3]) > 0.01
    assert abs((p <= 0.05).mean() - 0.05) < 0.02
    assert controls.evenness(p**2) < 1e-6, "or the test of evenness sees nothing"


def test_an_effect_beyond_its_controls_is_found():
    rng = np.random.default_rng(2)
    others = rng.lognormal(0, 1, (30, 20))
    effect = rng.lognormal(0, 1, 30)
    effect[:8] += 30
    q = controls.discoveries(controls.beyond(effect, others).p)
    assert (q[:8] <= 0.05).all() and (q[8:] <= 0.05).sum() <= 2
    with pytest.raises(ValueError, match="4 are too few"):
        controls.beyond(effect, others[:, :4])


def test_signs_are_exact_for_few_and_drawn_for_many():
    assert controls.flipped([1, 1, 1, 1, 1]) == 1 / 32
    assert controls.flipped([1, -1]) == 0.75  # three of four sums are as high as 0
    assert controls.flipped([2.0, np.nan, 1.0]) == 0.25
    assert controls.flipped([]) == 1
    many = np.random.default_rng(0).normal(0.5, 1, 40)
    assert controls.flipped(many) == pytest.approx(stats.ttest_1samp(many, 0, alternative="greater").pvalue, abs=0.01)


def test_signs_are_even_where_nothing_is():
    rng = np.random.default_rng(3)
    p = np.array([controls.flipped(rng.standard_normal(12)) for _ in range(400)])
    assert controls.evenness(p) > 0.01


def test_discoveries_leave_out_what_was_not_tested():
    q = controls.discoveries(np.array([0.001, np.nan, 0.5]))
    assert np.isnan(q[1]) and q[0] == pytest.approx(0.002) and q[2] == 0.5
