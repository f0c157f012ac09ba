"""A concept that was planted in ten features is gone without these ten, and is there without ten others."""

import numpy as np
import pytest
import torch

from whisper_sae.causal import erasure

WIDTH, FEATURES, PLANTED = 64, 200, 10


class World:
    """Frames that are sums of a few of 200 directions; ten of them fire more often where the concept is."""

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        W_dec = rng.standard_normal((FEATURES, 4 * WIDTH)).astype(np.float32)
        self.W_dec = torch.from_numpy(W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True))
        self.inverse = torch.linalg.pinv(self.W_dec)  # 200 directions in 256 dimensions: codes can be read back
        self.planted = rng.permutation(FEATURES)[:PLANTED]
        self.rng = rng

    def encode(self, x):
        return (x @ self.inverse).clamp_min(0) * ((x @ self.inverse) > 1e-3)

    def side(self, speakers, frames=150):
        is_it = self.rng.random(len(speakers) * frames) < 0.5
        fires = self.rng.random((len(is_it), FEATURES)) < 0.06
        fires[:, self.planted] = self.rng.random((len(is_it), PLANTED)) < np.where(is_it, 0.5, 0.06)[:, None]
        f = torch.from_numpy((fires * self.rng.uniform(1, 3, fires.shape)).astype(np.float32))
        return erasure.Side(f @ self.W_dec, is_it, np.repeat(speakers, frames))


@pytest.fixture(scope="module")
def world():
    made = World()
    return made, made.side([f"t{n}" for n in range(12)]), made.side([f"a{n}" for n in range(8)])


def mean(shares):
    return np.mean(list(shares.values()))


def test_ten_planted_directions_are_erased_at_ten_and_not_by_ten_at_random(world):
    made, train, asked = world
    order = erasure.ranked(made.encode(train.x), train.is_it)
    assert set(order[:PLANTED]) == set(made.planted)
    assert mean(erasure.read(train, asked)) > 0.9
    counts = [0, 1, 2, 5, 10, 20]
    left = [erasure.read(train, asked, erasure.without(order[:n], made.encode, made.W_dec)) for n in counts]
    assert erasure.until_chance(counts, left) == 10
    assert mean(left[3]) > 0.75, "five of ten leave most of it"
    others = made.rng.permutation(np.setdiff1d(np.arange(FEATURES), made.planted))[:PLANTED]
    assert mean(erasure.read(train, asked, erasure.without(others, made.encode, made.W_dec))) > 0.9


def test_ten_planted_directions_are_enough(world):
    made, train, asked = world
    kept = mean(erasure.read(train, asked, erasure.alone(made.planted, made.encode, made.W_dec)))
    others = np.setdiff1d(np.arange(FEATURES), made.planted)[:PLANTED]
    assert kept > 0.85
    assert abs(mean(erasure.read(train, asked, erasure.alone(others, made.encode, made.W_dec))) - 0.5) < 0.06


def test_one_direction_is_enough_for_a_rival(world):
    _, train, asked = world
    for rival in (erasure.without_mean_difference(train), erasure.least_squares_erased(train)):
        assert mean(erasure.read(train, asked, rival)) < 0.75
    leace = erasure.least_squares_erased(train)
    assert abs(mean(erasure.read(train, asked, leace)) - 0.5) < 0.06
    moved = (leace(train.x) - train.x).square().mean() / train.x.var(dim=0).mean()
    assert moved < 0.1, "it changes little else"


def test_after_least_squares_erasure_the_means_are_one(world):
    _, train, _ = world
    erased, mine = erasure.least_squares_erased(train)(train.x), torch.from_numpy(train.is_it)
    before = (train.x[mine].mean(0) - train.x[~mine].mean(0)).norm()
    assert (erased[mine].mean(0) - erased[~mine].mean(0)).norm() < 1e-4 * before


def test_who_always_says_the_same_is_at_chance():
    x, is_it = torch.zeros(40, 3), np.arange(40) < 30
    one = erasure.Side(x, is_it, np.where(is_it, "f", "m"))
    shares = erasure.read(one, one)
    assert sorted(shares.values()) == [0, 1]


def test_it_counts_as_gone_only_where_it_stays_gone():
    shares = [{"a": value} for value in (0.9, 0.5, 0.7, 0.51, 0.5)]
    assert erasure.until_chance([0, 1, 2, 4, 8], shares) == 4
    assert erasure.until_chance([0, 1], [{"a": 0.9}, {"a": 0.8}]) == -1
    assert erasure.until_chance([0, 1], [{"a": 0.5}, {"a": 0.5}]) == 0
