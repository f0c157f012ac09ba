"""Scores equal their formulas, do not depend on chunks, and their intervals cover."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from whisper_sae.sae import metrics


def data(n=500, d=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 30  # a long mean: the trap for a careless formula
    return torch.from_numpy(x.astype(np.float32))


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_fvu_equals_its_formula_at_any_chunk_size(size):
    x = data()
    say = lambda part: part * 0.99 + 0.1  # noqa: E731
    found = metrics.reconstruction(say, x.split(size))
    X, X_hat = x.double().numpy(), say(x).double().numpy()
    fvu = ((X - X_hat) ** 2).sum() / ((X - X.mean(axis=0)) ** 2).sum()
    assert found["fvu"] == pytest.approx(fvu, rel=1e-5)
    assert found["mse"] == pytest.approx(((X - X_hat) ** 2).mean(), rel=1e-5)
    assert found["fvu"] == pytest.approx(found["mse"] / found["mse_of_mean"])
    assert found["frames"] == 500


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(1, 60), st.integers(0, 99))
def test_speakers_change_the_interval_and_not_the_score(speakers, size, seed):
    x = data(80, 5, seed)
    voices = np.random.default_rng(seed).integers(0, speakers, len(x))
    plain = metrics.reconstruction(lambda part: part * 0.9, x.split(size))
    grouped = metrics.reconstruction(lambda part: part * 0.9, x.split(size), voices)
    assert grouped["fvu"] == pytest.approx(plain["fvu"], rel=1e-6)
    assert grouped["speakers"] == len(set(voices))
    if grouped["speakers"] >= metrics.LEAST:
        assert grouped["fvu_low"] <= grouped["fvu"] <= grouped["fvu_high"]


def test_the_interval_covers():
    """Simulated: 12 speakers of unequal amount and difficulty; 95 % intervals hold the truth 92-98 % of the time."""
    rng, hits, runs = np.random.default_rng(0), 0, 2000
    for _ in range(runs):
        below = rng.gamma(4, 1, 12)
        above = below * (0.2 + 0.05 * rng.normal(size=12))
        low, high = metrics.ratio_interval(above, below)
        hits += low <= 0.2 <= high
    assert 0.92 < hits / runs < 0.98


@pytest.mark.parametrize("speakers", [1, 2, 5])
def test_few_speakers_have_no_interval(speakers):
    assert all(np.isnan(metrics.ratio_interval(np.ones(speakers), np.full(speakers, 2.0))))
    assert all(np.isnan(metrics.ratio_interval(np.zeros(speakers), np.full(speakers, 2.0))))


def test_one_speaker_who_makes_all_the_errors_leaves_no_interval():
    """Without that speaker the ratio is 0, whose logarithm is nowhere; with a second one there is an interval."""
    below = np.array([5.0, 4.0, 6.0, 5.0, 3.0, 7.0])
    with np.errstate(all="raise"):
        assert all(np.isnan(metrics.ratio_interval(np.array([0.0, 3.0, 0.0, 0.0, 0.0, 0.0]), below)))
    low, high = metrics.ratio_interval(np.array([0.0, 3.0, 1.0, 0.0, 0.0, 0.0]), below)
    assert 0 < low < 4 / 30 < high < np.inf


def test_no_error_at_all_is_an_interval_of_nothing():
    assert metrics.ratio_interval(np.zeros(6), np.ones(6)) == (0, 0)


def massive(few: int = 3):
    """1,000 usual frames of which a fifth of the variance is unexplained, and a few very long ones, all explained."""
    rng = np.random.default_rng(0)
    x, wrong = rng.normal(size=(1000, 16)), rng.normal(size=(1000, 16)) * 0.2**0.5
    x[:few, 0] += 300
    wrong[:few] = 0
    return torch.from_numpy(x).float(), torch.from_numpy(x - wrong).float()


def test_a_few_massive_frames_decide_the_fvu_and_not_what_stands_beside_it():
    x, x_hat = massive()
    voices = np.arange(1000) % 10
    found = metrics.reconstruction(lambda _: x_hat, [x], voices)
    assert found["massive_frames"] == pytest.approx(0.003) and found["massive_variance"] > 0.9
    assert found["fvu"] < 0.02, "the plain score: nearly nothing seems to be left"
    centre = x.mean(dim=0)
    by_hand = ((x - x_hat).square().sum(1) / (x - centre).square().sum(1)).numpy()
    medians = [np.median(by_hand[voices == who]) for who in range(10)]
    assert found["frame_fvu"] == pytest.approx(np.mean(medians), rel=1e-4)
    assert found["frame_fvu_low"] < found["frame_fvu"] < found["frame_fvu_high"]
    usual = slice(3, None)
    assert found["fvu_usual"] == pytest.approx(
        float((x - x_hat)[usual].square().sum() / (x[usual] - centre).square().sum()), rel=1e-4
    )
    few = metrics.reconstruction(lambda _: x_hat, [x], np.arange(1000) % 5)
    assert np.isnan(few["frame_fvu_low"]) and np.isnan(few["fvu_low"])


def test_without_massive_frames_all_scores_agree():
    x, x_hat = massive(0)
    found = metrics.reconstruction(lambda _: x_hat, [x])
    assert found["massive_frames"] == 0 == found["massive_variance"]
    assert found["fvu_usual"] == pytest.approx(found["fvu"]) and found["frame_fvu"] == pytest.approx(0.2, abs=0.03)


def test_where_most_frames_are_zero_none_is_massive():
    x = torch.cat([torch.zeros(700, 8), torch.randn(300, 8)])
    found = metrics.reconstruction(lambda part: part * 0.5, [x])
    assert found["massive_frames"] == 0 and found["fvu_usual"] == pytest.approx(found["fvu"])


def test_the_cosine_is_about_the_mean_that_is_handed_over():
    """The first chunk is one speaker, whose mean is another."""
    x = torch.cat([torch.randn(200, 8) + 20, torch.randn(200, 8) - 20])
    say = lambda part: part * 0.5  # noqa: E731
    about = metrics.reconstruction(say, x.split(200), centre=x.mean(dim=0))["cosine"]
    whole = metrics.reconstruction(say, [x])["cosine"]
    assert about == pytest.approx(whole, abs=1e-5) != metrics.reconstruction(say, x.split(200))["cosine"]


def test_constant_activations_are_refused():
    with pytest.raises(ValueError, match="constant"):
        metrics.reconstruction(lambda x: x, [torch.ones(10, 4)])


def test_moments_equal_numpy():
    x = data()
    known = metrics.moments(x.split(33))
    np.testing.assert_allclose(known.mean, x.double().numpy().mean(axis=0))
    np.testing.assert_allclose(known.covariance, np.cov(x.double().numpy().T, bias=True), rtol=1e-8, atol=1e-8)
    assert known.mean_square == pytest.approx(x.double().square().sum(dim=1).mean().item())
    assert known.gamma == pytest.approx(known.mean.norm().item() / known.variance**0.5)


def test_principal_directions_leave_what_the_spectrum_says():
    x = data()
    known = metrics.moments([x])
    shares = metrics.principal_shares(known)
    assert shares[-1] == pytest.approx(1) and (np.diff(shares) >= 0).all()
    for rank in (1, 5, 12):
        fvu = metrics.reconstruction(metrics.say_principal(known, rank), [x])["fvu"]
        assert fvu == pytest.approx(1 - shares[rank - 1], abs=1e-5)


def test_rivals_bracket():
    x = data()
    known = metrics.moments([x])
    score = lambda say: metrics.reconstruction(say, [x])["fvu"]  # noqa: E731
    assert score(metrics.say_mean(known)) == pytest.approx(1, abs=1e-5)
    assert score(metrics.say_neurons(known, 12)) == pytest.approx(0, abs=1e-5)
    assert 0 < score(metrics.say_neurons(known, 3)) < 1
    loud = lambda part: known.mean.float() + 50 * (part - known.mean.float())  # noqa: E731
    assert score(loud) > 100 and score(metrics.say_scaled(loud, known, x)) == pytest.approx(0, abs=1e-6)


def test_firing_is_the_share_of_frames():
    f = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0]])
    np.testing.assert_allclose(metrics.firing(lambda x: x, [f, f]), [0, 0.5, 1])


def test_norms_by_kind():
    hidden = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]])
    rows = metrics.norms(hidden, np.array([[2, 0, 2]]), {0: "padding", 1: "silence", 2: "speech"})
    assert [(row["kind"], row["median"], row["frames"]) for row in rows] == [("padding", 1, 1), ("speech", 7.5, 2)]


@settings(max_examples=25)
@given(st.integers(2, 9), st.integers(0, 99))
def test_the_share_between_groups_is_its_formula(groups, seed):
    x = data(60, 5, seed)
    number = np.random.default_rng(seed).integers(0, groups, len(x))
    X = x.double().numpy()
    means = np.stack([X[number == one].mean(axis=0) for one in number])
    share = ((means - X.mean(axis=0)) ** 2).sum() / ((X - X.mean(axis=0)) ** 2).sum()
    assert metrics.share_between(x, number) == pytest.approx(share, rel=1e-6)
    names = np.array([f"<|{one}|>" for one in number])
    assert metrics.share_between(x * 3 - 70, names) == pytest.approx(share, rel=1e-4)


def test_the_share_between_groups_goes_from_chance_to_1():
    rng = np.random.default_rng(0)
    number = rng.integers(0, 20, 2000)
    noise, of_group = torch.from_numpy(rng.normal(size=(2000, 8))), torch.from_numpy(rng.normal(size=(20, 8)))
    assert metrics.share_between(of_group[number], number) == pytest.approx(1)
    assert metrics.share_between(noise, np.zeros(2000)) == pytest.approx(0, abs=1e-12)
    assert metrics.share_between(noise, number) == pytest.approx(19 / 1999, rel=0.3), (
        "chance: (groups - 1) / (rows - 1)"
    )
    assert 0.4 < metrics.share_between(of_group[number] + noise, number) < 0.6


# ----------------------------------------------------------------------------------------------- k-means, fronts


def test_centroids_are_those_of_lloyd():
    x = data(400, 6)
    begun = x[np.random.default_rng(3).permutation(len(x))[:8]]
    lloyd = KMeans(8, init=begun.numpy(), n_init=1, max_iter=200, tol=0, algorithm="lloyd").fit(x.numpy())
    found = metrics.centroids(x, 8, seed=3, turns=200)
    np.testing.assert_allclose(found.numpy(), lloyd.cluster_centers_, rtol=1e-4, atol=1e-3)
    said = metrics.say_nearest(found)(x)
    assert (x - said).square().sum().item() == pytest.approx(lloyd.inertia_, rel=1e-4)


def test_more_centroids_leave_less_and_one_is_the_mean():
    x = data(400, 6)
    left = [metrics.reconstruction(metrics.say_nearest(metrics.centroids(x, n, 0)), [x])["fvu"] for n in (1, 8, 64)]
    assert left[0] == pytest.approx(1, abs=1e-4) and left[0] > left[1] > left[2]
    every = metrics.centroids(x, 9999, 0)
    assert len(every) == 400 and (metrics.say_nearest(every)(x) - x).abs().max() < 1e-3


def test_a_centre_that_nobody_is_near_stays():
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    found = metrics.centroids(x, 4, seed=0)
    assert torch.isfinite(found).all() and torch.equal(metrics.say_nearest(found)(x), x)


POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points):
    cost, loss = map(np.array, zip(*points, strict=True))
    front = metrics.pareto(cost, loss)
    assert front.any()
    for i in range(len(points)):
        beaten = (cost <= cost[i]) & (loss <= loss[i]) & ((cost < cost[i]) | (loss < loss[i]))
        assert front[i] != beaten.any()
        both_lower = (cost < cost[i]) & (loss < loss[i])
        assert not (front[i] and both_lower.any()), "no other point has both lower"
        if not front[i]:
            assert (front & beaten).any(), "what beats it can be found on the front"
    order = np.argsort(cost[front], kind="stable")
    assert (np.diff(loss[front][order]) <= 0).all(), "what costs more leaves less"


@given(POINTS, st.randoms())
def test_the_front_does_not_depend_on_order_or_scale(points, random):
    shuffled = random.sample(range(len(points)), len(points))
    cost, loss = map(np.array, zip(*points, strict=True))
    front = metrics.pareto(cost, loss)
    np.testing.assert_array_equal(metrics.pareto(cost[shuffled], loss[shuffled]), front[shuffled])
    np.testing.assert_array_equal(metrics.pareto(3 * cost + 1, 0.5 * loss), front)


def test_what_could_not_be_measured_is_not_on_the_front():
    assert metrics.pareto([1, 2, np.nan], [3, np.nan, 1]).tolist() == [True, False, False]
    assert metrics.pareto([], []).tolist() == []
