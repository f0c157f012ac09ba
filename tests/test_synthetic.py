"""The world whose features are known: it is what it says, its scores mean what they say, every variant finds it."""

import pytest
import torch

from whisper_sae.sae import architectures, synthetic, training


def test_a_world_is_what_it_says():
    world = synthetic.world(features=60, width=32, l0=3.0, power=1.0, together=0.0, noise=0.0)
    x, f = world.draw(20_000, seed=5)
    torch.testing.assert_close(x, f @ world.directions + world.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((f > 0).float().mean(dim=0), world.rates, atol=0.012, rtol=0)
    assert (f > 0).sum(dim=1).float().mean() == pytest.approx(float(world.rates.sum()), rel=0.03)
    assert world.rates[0] / world.rates[9] == pytest.approx(10, rel=0.01) or world.rates[0] == 0.5
    assert torch.equal(world.draw(5, seed=5)[0], world.draw(5, seed=5)[0])


def test_groups_fire_together_when_asked_to():
    def joint(together):
        f = synthetic.world(40, 16, 4.0, 0.0, together, 0.0).draw(20_000, 1)[1] > 0
        return torch.corrcoef(f.float().T)

    free, tied = joint(0.0), joint(0.8)
    assert free[0, 1].abs() < 0.03 < 0.3 < tied[0, 1] and tied[0, 4].abs() < 0.03


def test_recovery_of_the_truth_itself_is_whole_and_of_a_random_dictionary_is_not():
    world = synthetic.world(**synthetic.SETTINGS["easy"] | {"noise": 0.0})

    def knows(x):
        return world.draw(len(x), 1)[1]

    whole = synthetic.recovery(world, world.directions, knows, seed=1)
    assert whole == pytest.approx({"max_cosine": 1.0, "matched_cosine": 1.0, "f1": 1.0}, abs=1e-5)
    twice = synthetic.recovery(world, world.directions[:48].repeat(2, 1), lambda x: knows(x)[:, :48].repeat(1, 2))
    assert twice["matched_cosine"] < twice["max_cosine"] < 0.9
    random = torch.nn.functional.normalize(torch.randn(192, 64, generator=torch.Generator().manual_seed(3)), dim=1)
    by_chance = synthetic.recovery(world, random, lambda x: (x @ random.T).relu())
    assert by_chance["max_cosine"] < 0.5 and by_chance["f1"] < 0.2


@pytest.mark.parametrize(
    "variant",
    ["batchtopk", *(pytest.param(name, marks=pytest.mark.slow) for name in ("topk", "jumprelu", "matryoshka"))],
)
def test_the_easy_world_is_found(variant):
    world = synthetic.world(**synthetic.SETTINGS["easy"])
    some = world.draw(4096, 999_999)[0]
    scale = (64 / some.square().sum(dim=1).mean()).sqrt()
    coder = architectures.create(variant, 64, 192, 4)
    coder.start_on(some * scale)
    batches = lambda start: (world.draw(512, step)[0] * scale for step in range(start, 800))  # noqa: E731
    for _ in training.train(coder, batches, steps=800, learning_rate=3e-3, dead_tokens=50_000):
        pass
    found = synthetic.recovery(world, coder.W_dec.detach(), lambda x: coder.train().encode(x * scale))
    assert found["max_cosine"] > 0.95, found
    assert found["f1"] > 0.7, found


@pytest.mark.parametrize("seed", [0, 1])
def test_a_dictionary_does_not_begin_at_the_truth(seed):
    """Drawn from one generator both would begin with the same directions, and everything would be found at once."""
    world = synthetic.world(**synthetic.SETTINGS["easy"], seed=seed)
    coder = architectures.create("topk", 64, 192, 4, seed=seed)
    found = synthetic.recovery(world, coder.W_dec.detach(), coder.encode)
    assert found["max_cosine"] < 0.5
