"""What chance gives is not found, what is planted is, however alike frames of a phone, a clip and a speaker are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.stats import false_discovery_control, norm

from whisper_sae.features import selectivity, sparse_acts
from whisper_sae.stats import null_distribution

# ------------------------------------------------------------------------------------------------- shifts


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 99))
def test_a_shift_turns_every_clip_round(lengths, seed):
    clip = np.repeat(np.arange(len(lengths)), lengths)
    for order in null_distribution.shifts(clip, 3, seed):
        assert (clip[order] == clip).all() and len(set(order)) == len(order)
        for one in range(len(lengths)):
            rows = np.flatnonzero(clip == one)
            by = int(np.flatnonzero(rows == order[rows[0]])[0])
            assert (order[rows] == np.roll(rows, -by)).all()


def test_all_shifts_are_equally_likely_and_of_each_clip_its_own():
    clip = np.repeat([4, 2], [5, 8])
    turns = np.array([[order[0], order[5] - 5] for order in null_distribution.shifts(clip, 4000)])
    for column, length in zip(turns.T, (5, 8), strict=True):
        np.testing.assert_allclose(np.bincount(column, minlength=length) / 4000, 1 / length, atol=0.03)
    assert abs(np.corrcoef(turns.T)[0, 1]) < 0.06
    assert (next(null_distribution.shifts(clip, 1, 3)) == next(null_distribution.shifts(clip, 1, 3))).all()


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(0, 99), st.booleans())
def test_a_swap_gives_every_frame_the_label_of_its_time_in_another_window(lengths, seed, mixed):
    """Windows may lie in any order, with frames left out; the nearest frame in time is taken, or one's own."""
    rng = np.random.default_rng(seed)
    window = np.repeat(rng.permutation(len(lengths)), lengths)
    position = np.concatenate([np.sort(rng.choice(30, many, replace=False)) for many in lengths])
    if mixed:
        window, position = (part[rng.permutation(len(part))] for part in (window, position))
        window, position = window, np.arange(len(window)) % 30  # no two of a window at one time
        keep = np.unique(np.stack([window, position]), axis=1)
        window, position = keep
    for order in null_distribution.swaps(window, position, 3, alike=3, seed=seed):
        taken = []
        for one in np.unique(window):
            mine = np.flatnonzero(window == one)
            others = set(window[order[mine]]) - {one}
            assert len(others) <= 1, "of one other window"
            for other in others:
                taken.append(other)
                apart = np.abs(position[window == other][None] - position[mine][:, None]).min(axis=1)
                near = apart <= 2
                assert (np.abs(position[order[mine]] - position[mine])[near] == apart[near]).all()
                assert (order[mine][~near] == mine[~near]).all(), "its own"
        assert len(taken) == len(set(taken)), "each window is taken once"


def test_swaps_are_among_windows_of_about_the_same_length():
    lengths = np.arange(20, 80)
    window = np.repeat(np.arange(60), lengths)
    position = np.concatenate([np.arange(many) for many in lengths])
    for order in null_distribution.swaps(window, position, 20, seed=3, reach=80):
        apart = np.abs(lengths[window[order]] - lengths[window])
        assert apart.max() < 10 and apart.mean() > 1


# --------------------------------------------------------------------------------------------- calibration


def world(seed, *, speakers=6, clips=5, frames=120, features=60, labels=8, differ=0.7, dense=False):
    """Codes that have nothing to do with their labels, yet frames of a phone, a clip and a speaker are alike.

    Phones last 2 to 9 frames; which are frequent depends on speaker and clip. So does how often a feature fires; it
    fires for some frames at a time. `differ` is how unlike the clips of a speaker are.
    """
    rng = np.random.default_rng(seed)
    rate, label, values = np.exp(rng.normal(-3.5, 1.2, features)), [], []
    for _ in range(speakers):
        liked, loud = rng.dirichlet(np.full(labels, 2.0)), np.exp(rng.normal(0, 0.7, features))
        for _ in range(clips):
            here = liked * rng.gamma(0.49 / differ**2, 1, labels) + 1e-9
            runs = np.repeat(rng.choice(labels, frames, p=here / here.sum()), rng.integers(2, 10, frames))
            label.append(runs[:frames])
            noise = gaussian_filter1d(rng.normal(size=(frames + 40, features)), 3, axis=0)[20:-20]
            share = np.clip(rate * loud * np.exp(rng.normal(0, differ, features)), 1e-4, 0.6)
            values.append(noise / noise.std() + norm.ppf(share))
    speaker, clip = (np.repeat(np.arange(speakers * clips) // each, frames) for each in (clips, 1))
    values = np.concatenate(values)
    made = sparse_acts.of_chunks([values if dense else np.maximum(values, 0)], both_sides=dense)
    return sparse_acts.known(made, np.concatenate(label).astype(str), speaker, clip)


def judged(made, frames, orders=None, seed=0):
    ranked = selectivity.ranked(made, frames)
    orders = null_distribution.shifts(frames.clip, 60, seed) if orders is None else orders
    by_chance = null_distribution.null(ranked.auc, frames.label, orders)
    return null_distribution.judge(ranked.auc(frames.label), by_chance, ranked.spread, ranked.expected)


def share_found(runs, orders=None, **how):
    return np.mean([judged(*(w := world(s, **how)), orders and orders(*w, s), s).found().any() for s in range(runs)])


@pytest.mark.parametrize("how", [{}, {"differ": 1.5}, {"dense": True}], ids=["sparse", "clips unlike", "signed"])
def test_nothing_is_found_where_nothing_is(how):
    """At a false discovery rate of 1 in 20, at most 1 run of 20 finds anything."""
    assert share_found(20, features=30, **how) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"differ": 1.5}, {"dense": True}, {"speakers": 1, "clips": 6}])
def test_nothing_is_found_in_many_runs(how):
    """200 runs; up to 17 of them are what a true rate of 1 in 20 gives in 98 of 100 cases."""
    assert share_found(200, **how) <= 17 / 200


def test_p_is_even_where_nothing_is():
    p = np.concatenate([judged(*world(seed), seed=seed).p.ravel() for seed in range(6)])
    p = p[np.isfinite(p)]
    for level in (0.01, 0.05, 0.25):
        assert (p <= level).mean() == pytest.approx(level, rel=0.25)


def test_one_circle_for_a_speaker_finds_too_much():
    """Why clips are turned one by one: where they are unlike, a clip's labels then meet the codes of two clips."""
    assert (
        share_found(
            20, lambda made, frames, seed: null_distribution.shifts(frames.speaker, 60, seed), features=30, differ=1.5
        )
        > 0.05
    )


def test_leaving_out_short_shifts_finds_too_much():
    """Why all shifts count: what is left out is what the true one is like, and a circle's shifts have a fixed sum."""

    def far(made, frames, seed):
        rng = np.random.default_rng(seed)
        rows = np.arange(len(frames.clip)).reshape(-1, 120)
        for _ in range(60):
            yield np.concatenate([np.roll(mine, rng.integers(25, 96)) for mine in rows])

    assert share_found(20, far, features=30) > 0.2


# ------------------------------------------------------------------------------------------ what is planted


def test_a_planted_detector_is_found_and_found_alone():
    """Feature 0 hears half of the frames of label 3, and is as often wrong."""
    made, frames = world(1)
    rng = np.random.default_rng(0)
    dense = made.toarray()
    hears = np.where(
        frames.names[frames.label] == "3", rng.random(len(frames.label)) < 0.5, rng.random(len(frames.label)) < 0.05
    )
    dense[:, 0] = hears * rng.exponential(size=len(hears))
    verdict = judged(sparse_acts.of_chunks([dense]), frames)
    assert np.argwhere(verdict.found()).tolist() == [[0, frames.names.tolist().index("3")]]
    assert np.nanargmax(verdict.z) == np.ravel_multi_index((0, 3), verdict.z.shape)
    order = next(null_distribution.shifts(frames.clip, 1, seed=7))
    shifted = frames._replace(label=frames.label[order])
    assert not judged(sparse_acts.of_chunks([dense]), shifted).found().any(), "the alignment shifted once: nothing"


def test_what_cannot_be_tested_is_not():
    """A feature that never fires, one that always does as loud, and a label that is nowhere."""
    made, frames = world(0, features=6)
    dense = made.toarray()
    dense[:, 0], dense[:, 1] = 0, 2
    frames = frames._replace(names=np.append(frames.names, "none"))
    verdict = judged(sparse_acts.of_chunks([dense]), frames)
    for part in verdict:
        assert np.isnan(part[:2]).all() and np.isnan(part[:, -1]).all() and np.isfinite(part[2:, :-1]).all()
    assert not verdict.found()[:2].any()


def test_one_clip_is_enough_to_ask():
    made, frames = world(0, speakers=1, clips=1, frames=200)
    verdict = judged(made, frames)
    assert np.isfinite(verdict.p).any() and (verdict.p[np.isfinite(verdict.p)] > 0).all()


def test_a_hundred_equal_tests_of_which_one_stands_out():
    rng = np.random.default_rng(0)
    by_chance = rng.normal(size=(100, 10, 10))
    observed = rng.normal(size=(10, 10))
    observed[4, 5] = 8
    verdict = null_distribution.judge(observed, by_chance, np.full((10, 10), 0.1), np.ones((10, 10)))
    assert np.argwhere(verdict.found()).tolist() == [[4, 5]]
    np.testing.assert_allclose(np.delete(verdict.p, 45), norm.sf(np.delete(observed, 45)), atol=0.12)


def test_a_test_that_hardly_moves_is_measured_by_the_least_spread():
    by_chance = np.zeros((20, 1))
    by_chance[0] = 0.01
    verdict = null_distribution.judge(np.array([0.02]), by_chance, np.array([1.0]), np.array([1.0]))
    assert verdict.z[0] == pytest.approx(0.0195)
    with pytest.raises(ValueError, match="chance: 19 shifts are too few, 20 are needed"):
        null_distribution.judge(np.array([0.02]), by_chance[:19], np.array([1.0]), np.array([1.0]))


def one_sentence(seed=0, clips=60, frames=90):
    """Every clip has the same fifteen phones of 0.12 s, up to 0.06 s earlier or later. Features 0 and 1 know only the
    time since the window began, 2 nothing, and 3 hears eight in ten frames of phone p07."""
    rng, labels, values = np.random.default_rng(seed), [], []
    time = np.arange(frames)
    for _ in range(clips):
        label = np.roll(np.repeat(np.arange(15), 6), rng.integers(-3, 4))
        x = np.zeros((frames, 4))
        x[36:42, 0], x[60:64, 1] = rng.uniform(1, 2, 6), 1
        x[:, 2] = rng.uniform(size=frames) < 0.07
        x[:, 3] = (label == 7) * (rng.uniform(size=frames) < 0.8) * rng.uniform(1, 2, frames)
        labels += [f"p{number:02d}" for number in label]
        values.append(x)
    clip = np.repeat(np.arange(clips), frames)
    return *sparse_acts.known(sparse_acts.of_chunks(values), np.array(labels), clip // 2, clip), np.tile(time, clips)


def test_a_feature_of_position_is_beyond_shifts_and_not_beyond_swaps():
    """Where everyone reads one sentence, the time since the window began tells phones; a feature of a phone is more."""
    made, frames, position = one_sentence()
    by_shifts = judged(made, frames)
    by_swaps = judged(made, frames, null_distribution.swaps(frames.clip, position, 50))
    assert by_shifts.found()[[0, 1]].any(axis=1).all() and by_shifts.z[0].max() > 10, "what shifts take it for"
    verdict = null_distribution.both(by_shifts, by_swaps)
    assert not verdict.found()[:3].any() and np.nanmax(by_swaps.z[:3]) < 4
    assert np.argwhere(verdict.found()).tolist() == [[3, 7]] and verdict.z[3, 7] > 5


def test_beyond_both_is_beyond_each():
    rng = np.random.default_rng(0)
    one, other = (
        null_distribution.Verdict(rng.normal(size=(20, 5)), p, np.full((20, 5), np.nan))
        for p in rng.beta(0.2, 2, (2, 20, 5))
    )
    one.p[0] = np.nan
    verdict = null_distribution.both(one, other)
    known = np.isfinite(verdict.p)
    assert known[1:].all() and not known[0].any() and np.isnan(verdict.q[0]).all()
    least = norm.sf(np.minimum(one.z, other.z))
    np.testing.assert_array_equal(verdict.p[1:], np.maximum(np.maximum(one.p, other.p), least)[1:])
    np.testing.assert_allclose(verdict.q[known], false_discovery_control(verdict.p[known]))
    assert (verdict.z <= one.z).all() and (verdict.z <= other.z).all()


def test_of_one_sentence_in_clips_of_any_length_nothing_is_found():
    """Everyone says the same at the same time and stops somewhere: what comes later is no sign of a phone."""
    rng = np.random.default_rng(0)
    made, frames, position = one_sentence()
    label = np.repeat(np.arange(15), 6)[position]
    keep = position < rng.integers(20, 91, 60)[frames.clip]
    made, frames = sparse_acts.part(made, frames._replace(label=label), keep)
    by_swaps = judged(made, frames, null_distribution.swaps(frames.clip, position[keep], 50))
    assert not by_swaps.found()[:3].any() and np.nanmax(by_swaps.z[:3]) < 4


def test_a_null_that_hardly_moves_makes_no_discovery_of_a_hairs_breadth():
    """Of 200 tests one is a thousandth of a deviation above all swaps, which are all alike."""
    observed, spread = np.zeros(200), np.ones(200)
    observed[7] = 1e-3
    by_chance = 1e-6 * np.random.default_rng(0).normal(size=(50, 200))
    one = null_distribution.judge(observed, by_chance, spread, spread)
    assert one.found()[7] and one.z[7] < 0.01, "by its rank"
    assert not null_distribution.both(one, one).found().any()
