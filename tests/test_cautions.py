"""Too few rows and too dense a code are said before anybody believes a feature."""

import numpy as np
import pytest
import torch

from whisper_sae.sae import architectures, diagnostics, metrics, training


def test_a_hundred_vectors_cannot_carry_six_thousand_latents():
    said = diagnostics.too_few(100, 6144)
    assert "N / d_sae = 0.0163" in said and "at most 100 latents" in said and "6,144" in said
    assert diagnostics.too_few(70, 6144)


@pytest.mark.parametrize(("rows", "warns"), [(61_439, True), (61_440, False), (6144, True), (10**7, False)])
def test_the_bound_is_ten_rows_a_latent(rows, warns):
    assert bool(diagnostics.too_few(rows, 6144)) is warns


def test_a_code_of_which_nearly_all_fires_is_dense():
    """What the reference reports: 1,520 of 1,536 latents a token."""
    said = diagnostics.too_dense(np.full(1536, 1520 / 1536), "relu")
    assert "1,520 of 1,536 latents fire" in said and "99%" in said and "raise the penalty" in said
    assert "lower k" in diagnostics.too_dense(np.full(1536, 0.5), "topk")
    assert diagnostics.too_dense(np.full(1536, 32 / 1536)) == ""


def test_few_latents_that_always_fire_are_no_reason_to_warn():
    rates = np.full(1000, 0.01)
    rates[:50] = 1.0
    assert diagnostics.too_dense(rates) == ""
    rates[:150] = 1.0
    assert "150 on more than half" in diagnostics.too_dense(rates)


def test_it_fires_on_a_dictionary_under_hardly_any_penalty_and_not_under_a_real_one():
    """S4's L1 of 1e-5 leaves nearly every latent firing; k of them leave k."""
    x = torch.randn(4096, 32, generator=torch.Generator().manual_seed(0)) + 1

    def rates_of(variant, penalty):
        coder = architectures.create(variant, 32, 128, 8, penalty=penalty)
        coder.start_on(x[:1024])

        def batches(start):
            yield from (x[torch.randperm(len(x), generator=torch.Generator().manual_seed(s))[:256]] for s in
                        range(start, 150))  # fmt: skip

        list(training.train(coder, batches, steps=150, learning_rate=3e-3, dead_tokens=10_000))
        return metrics.firing(coder.encode, [x])

    assert "not sparse" in diagnostics.too_dense(rates_of("relu", 1e-5))
    assert diagnostics.too_dense(rates_of("batchtopk", None)) == ""
