"""Training: it finds planted directions, keeps its promises step by step, and resumes exactly."""

import pytest
import torch

from whisper_sae.sae import architectures, training

D, TRUE = 24, 32


def planted(size, step, seed=0):
    """Frames that are sums of 3 of 32 known directions, with a mean and a little noise; mean squared norm about D."""
    rng = torch.Generator().manual_seed(seed * 100_003 + step)
    directions = torch.nn.functional.normalize(torch.randn(TRUE, D, generator=torch.Generator().manual_seed(7)), dim=1)
    f = torch.rand(size, TRUE, generator=rng) * 3 + 1
    keep = torch.rand(size, TRUE, generator=rng).argsort(dim=1) < 3
    x = (f * keep) @ directions + 1.0 + 0.02 * torch.randn(size, D, generator=rng)
    return 0.9 * x, directions


def batches(steps, size=256):
    return lambda start: (planted(size, step)[0] for step in range(start, steps))


def fit(variant="batchtopk", steps=300, k=3, dead_tokens=10_000, learning_rate=3e-3, **options):
    coder = architectures.create(variant, D, 64, k)
    coder.start_on(planted(1024, 10_000)[0])
    options |= {"steps": steps, "dead_tokens": dead_tokens, "learning_rate": learning_rate}
    history = list(training.train(coder, batches(steps), **options))
    return coder, history


@pytest.mark.parametrize("variant", list(architectures.VARIANTS))
def test_planted_directions_are_found(variant):
    slow = variant == "tied"  # whose encoder turns only with its decoder
    coder, history = fit(variant, steps=400, learning_rate=1e-2 if slow else 3e-3)
    truth = planted(1, 0)[1]
    best = (truth @ coder.W_dec.T).max(dim=1).values
    assert best.mean() > (0.85 if variant in ("tied", "matryoshka") else 0.95), best.mean()
    assert history[-1]["fvu"] < 0.2 and history[-1]["fvu"] < 0.5 * history[0]["fvu"]


def test_rows_tell_each_term_apart():
    _, history = fit(steps=40)
    assert len(history) == 40 and [row["step"] for row in history] == list(range(40))
    assert history[-1]["tokens"] == 40 * 256
    assert {"reconstruction", "auxiliary", "fvu", "l0", "dead", "learning_rate"} <= set(history[0])
    assert all(abs(row["l0"] - 3) < 0.2 for row in history)


def test_learning_rate_rises_and_falls_in_lines():
    _, history = fit(steps=100)
    rates = [row["learning_rate"] for row in history]
    assert rates[0] == pytest.approx(3e-3 / 5) and rates[4] == pytest.approx(3e-3)
    assert max(rates) == rates[50] and rates[-1] == pytest.approx(3e-3 / 30)


def test_directions_keep_length_one_after_any_step():
    coder = architectures.create("topk", D, 64, 3)
    for _ in training.train(coder, batches(20), steps=20, learning_rate=1e-2, dead_tokens=1000):
        assert (coder.W_dec.norm(dim=1) - 1).abs().max() < 1e-5


def test_a_dead_latent_is_revived():
    """Eight latents call too softly ever to be among the k; the auxiliary loss brings them back."""

    def alive(dead_tokens):
        coder = architectures.create("topk", D, 64, 3)
        coder.start_on(planted(1024, 10_000)[0])
        coder.W_enc.data[:, :8] *= 0.02
        for _ in training.train(coder, batches(250), steps=250, learning_rate=1e-2, dead_tokens=dead_tokens):
            pass
        return (coder.encode(planted(4096, 20_000)[0])[:, :8] > 0).any(dim=0).sum()

    assert alive(dead_tokens=2_000) > alive(dead_tokens=10**9) == 0


def test_dead_latents_are_counted_in_frames():
    coder = architectures.create("topk", D, 64, 3)
    coder.start_on(planted(1024, 10_000)[0])
    coder.b_enc.data[:16] = -1e6
    rows = list(training.train(coder, batches(12), steps=12, learning_rate=1e-9, dead_tokens=256 * 10))
    assert rows[9]["dead"] == 0 and rows[10]["dead"] >= 16 / 64


@pytest.mark.parametrize("variant", list(architectures.VARIANTS))
def test_resumed_equals_uninterrupted(variant, tmp_path):
    whole, history = fit(variant, steps=60, dead_tokens=2_000)
    path = tmp_path / "training.pt"
    coder = architectures.create(variant, D, 64, 3)
    coder.start_on(planted(1024, 10_000)[0])
    options = dict(steps=60, learning_rate=3e-3, dead_tokens=2_000, checkpoint=path, every=7)
    for row in training.train(coder, batches(60), **options):
        if row["step"] == 38:
            break  # killed: 35 steps are in the checkpoint
    fresh = architectures.create(variant, D, 64, 3, seed=99)  # its own start must not matter
    again = list(training.train(fresh, batches(60), **options))
    assert again == history
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name


def test_bad_numbers_stop_the_training_at_once():
    def broken(start):
        yield planted(64, 0)[0]
        yield torch.full((64, D), torch.nan)

    with pytest.raises(ValueError, match="not finite"):
        list(
            training.train(
                architectures.create("topk", D, 64, 3), broken, steps=2, learning_rate=1e-3, dead_tokens=1000
            )
        )


def test_resampled_latents_fire_and_adam_has_forgotten_them():
    """Eight latents that nothing calls begin anew at badly explained frames, and fire from then on."""
    coder = architectures.create("relu", D, 64, 3)
    coder.start_on(planted(1024, 10_000)[0])
    coder.b_enc.data[:8] = -1e6
    learner = training.Learner(coder, training.Settings(200, 3e-3, 256 * 5, auxiliary=0, resample_tokens=256 * 10))
    rows = []
    for x in batches(10)(0):
        rows.append(learner.step(x))
    assert [row["resampled"] for row in rows] == [0] * 9 + [8]
    for name in ("W_dec", "W_enc", "b_enc"):
        moments = learner.optimiser.state[learner.rows[name]]
        for moment in ("exp_avg", "exp_avg_sq"):
            assert (moments[moment][3] == 0).all() and (moments[moment][30] != 0).any()
    for x in batches(40)(10):
        learner.step(x)
    assert (coder.encode(planted(4096, 20_000)[0])[:, :8] > 0).any(dim=0).all()


def test_several_learn_as_each_would_alone():
    alone = {variant: fit(variant, steps=25) for variant in ("topk", "relu")}
    saes = {variant: architectures.create(variant, D, 64, 3) for variant in alone}
    for coder in saes.values():
        coder.start_on(planted(1024, 10_000)[0])
    rows = list(training.train_together(saes, batches(25), steps=25, dead_tokens=10_000, learning_rate=3e-3))
    for variant, (coder, history) in alone.items():
        assert [row[variant] for row in rows] == history
        assert torch.equal(coder.W_dec, saes[variant].W_dec)


def test_a_batch_for_each():
    saes = {name: architectures.create("topk", D, 64, 3, seed=1) for name in "ab"}
    both = lambda start: ({"a": planted(64, s)[0], "b": 2 * planted(64, s)[0]} for s in range(start, 3))  # noqa: E731
    rows = list(training.train_together(saes, both, steps=3, dead_tokens=1000, learning_rate=1e-3))
    assert rows[0]["b"]["reconstruction"] == pytest.approx(4 * rows[0]["a"]["reconstruction"], rel=0.3)
    assert not torch.equal(saes["a"].W_dec, saes["b"].W_dec)


def test_early_stopping_keeps_the_best_state():
    scores = iter([5.0, 3.0, 4.0, 3.5, 1.0])
    states = []

    def held_out(coder):
        states.append(coder.W_dec.clone())
        return next(scores)

    coder, history = fit(steps=300, every=10, patience=2, held_out=held_out)
    assert len(history) == 40 and [row["held_out"] for row in history[9::10]] == [5.0, 3.0, 4.0, 3.5]
    assert torch.equal(coder.W_dec, states[1])


@pytest.mark.parametrize("shape, middle", [("linear", 0.5), ("cosine", 0.5), ("linear", 0.25), ("cosine", 0.1464)])
def test_how_the_rate_falls(shape, middle):
    settings = training.Settings(1000, 1.0, 1, shape=shape, decay=0.4)
    step = 800 if middle == 0.5 else 900
    assert settings.rate(step) == pytest.approx(middle, abs=1e-3) and settings.rate(500) == 1.0


@pytest.mark.parametrize(
    "x, said",
    [
        (torch.zeros(64, D), "all frames are the same"),
        (torch.full((64, D), torch.inf), "NaN or infinite"),
        (torch.zeros(64, D + 1), r"expected \(frame, 24\)"),
        (torch.zeros(2, D), "2 frames are fewer than k = 3"),
    ],
)
def test_a_batch_that_cannot_be_learnt_from_is_refused_at_once(x, said):
    with pytest.raises(ValueError, match=said):
        next(
            training.train(
                architectures.create("topk", D, 64, 3), lambda s: iter([x]), steps=9, learning_rate=1e-3, dead_tokens=9
            )
        )


@pytest.mark.parametrize("wrong", [{"shape": "steep"}, {"steps": 0}, {"learning_rate": float("nan")}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=r"shape|above 0"):
        training.Settings(**{"steps": 1, "learning_rate": 1e-3, "dead_tokens": 1} | wrong)
