"""The sparse autoencoder: its formula, its invariants, its file."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_sae import sae

VARIANTS = list(sae.VARIANTS)


def frames(n=64, d=16, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", VARIANTS)
def test_formula(variant):
    coder = sae.create(variant, 16, 64, 5).eval()
    torch.nn.init.normal_(coder.b_enc, std=0.1)
    torch.nn.init.normal_(coder.b_dec)
    coder.threshold.fill_(1.0)
    x = frames()
    pre = (x - coder.b_dec) @ coder.W_enc + coder.b_enc
    f = coder.encode(x)
    kept = f > 0
    assert torch.equal(f[kept], pre[kept]) and (f >= 0).all()
    torch.testing.assert_close(coder(x), f @ coder.W_dec + coder.b_dec)
    if variant == "topk":
        assert (kept.sum(dim=1) <= 5).all()
        weakest_kept = torch.where(kept, pre, torch.inf).min(dim=1).values
        assert (torch.where(kept, -torch.inf, pre).max(dim=1).values <= weakest_kept).all()
    else:
        assert torch.equal(kept, pre > 1.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 12), st.integers(1, 12), st.integers(0, 5))
def test_l0_in_training(n, d, k, seed):
    x = frames(n, d, seed)
    topk = sae.create("topk", d, 24, k, seed).train()
    assert ((topk.encode(x) > 0).sum(dim=1) <= k).all()
    batch = sae.create("batchtopk", d, 24, k, seed).train()
    for _ in range(2):  # the second time the last threshold is the guess
        assert (batch.encode(x) > 0).sum() <= k * n
    positive = (batch.pre(x) > 0).sum()
    assert (batch.encode(x) > 0).sum() == min(k * n, positive)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(VARIANTS), st.integers(1, 40), st.integers(2, 12), st.integers(1, 24), st.integers(0, 9))
def test_the_sparse_path_equals_autograd(variant, n, d, k, seed):
    """Same reconstruction and same gradients as the dense formula, whatever the shape; ties and silent frames too."""
    coder = sae.create(variant, d, 24, k, seed).train()
    x = frames(n, d, seed)
    x[: n // 3] = coder.b_dec.detach()  # frames on which nothing is called
    x[n // 2 :] = x[-1].clone()  # and ties
    torch.nn.init.normal_(coder.b_enc, std=0.1, generator=torch.Generator().manual_seed(seed))
    found = []
    for say in (lambda: coder(x), lambda: coder.resay(x)[0]):
        coder.zero_grad()
        coder.threshold.zero_()
        x_hat = say()
        ((x - x_hat) * torch.arange(1.0, d + 1)).square().sum().backward()
        found.append([x_hat.detach(), *(part.grad.clone() for part in coder.parameters())])
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-5 * float(dense.abs().max() + 1))


def test_frames_may_come_in_any_shape():
    coder, x = sae.create("topk", 16, 64, 5).eval(), frames(12)
    torch.testing.assert_close(coder(x.view(3, 4, 16)), coder(x).view(3, 4, 16))
    assert coder.encode(x.view(3, 4, 16)).shape == (3, 4, 64) and coder.encode(x[0]).shape == (64,)


def test_batchtopk_finds_the_same_weakest_call_with_any_guess():
    coder, x = sae.create("batchtopk", 16, 64, 5).train(), frames(256)
    exact = coder.pre(x).flatten().topk(5 * 256).values.min().item()
    for guess in (0.0, 0.5 * exact, exact, 3 * exact, 1e9):
        coder.threshold.fill_(guess)
        frame, _, weakest = coder._strongest(coder.pre(x))
        assert weakest == exact and len(frame) == 5 * 256


def test_calibrated_threshold_keeps_l0_on_new_frames():
    coder = sae.create("batchtopk", 32, 256, 8)
    coder.calibrate(frames(2048, 32, seed) for seed in range(4))
    l0 = (coder.eval().encode(frames(4096, 32, 99)) > 0).sum(dim=1).float().mean()
    assert abs(l0 / 8 - 1) < 0.1


def test_outside_training_a_frame_does_not_depend_on_its_batch():
    coder = sae.create("batchtopk", 16, 64, 5)
    coder.calibrate([frames(512)])
    coder.eval()
    x = frames(50, seed=3)
    alone = torch.cat([coder.encode(row) for row in x.split(1)])
    torch.testing.assert_close(coder.encode(x), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [0.03, 40.0])
def test_scale_is_folded_back_exactly(variant, scale):
    """An SAE of scale·x becomes an SAE of x: the same features fire, in the units of x."""
    coder = sae.create(variant, 16, 64, 5)
    x = frames(128) / scale
    coder.start_on(x * scale)
    if variant == "batchtopk":
        coder.calibrate([x * scale])
        coder.threshold *= 0.999  # no call lies on it
    coder.eval()
    f, x_hat = coder.encode(x * scale), coder(x * scale)
    coder.undo_scale(scale)
    torch.testing.assert_close(coder.encode(x) * scale, f, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(coder(x) * scale, x_hat, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(coder.W_dec.norm(dim=1), torch.ones(64), atol=1e-5, rtol=0)


def test_parallel_gradient_is_gone():
    coder = sae.create("topk", 16, 64, 5)
    coder(frames()).square().sum().backward()
    before = (coder.W_dec.grad * coder.W_dec).sum(dim=1).abs().max()
    coder.drop_parallel_gradient()
    assert before > 1 and (coder.W_dec.grad * coder.W_dec).sum(dim=1).abs().max() < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_file_round_trip(variant, tmp_path):
    coder = sae.create(variant, 16, 64, 5, seed=3)
    coder.threshold.fill_(0.7)
    sae.save(coder, tmp_path, site="encoder.1.resid")
    again = sae.load(tmp_path)
    assert torch.equal(again(frames()), coder.eval()(frames())) and type(again) is type(coder)
    told = json.loads((tmp_path / "sae.json").read_text())
    assert told["site"] == "encoder.1.resid" and told["d_sae"] == 64
    (tmp_path / "sae.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="not a saved SAE"):
        sae.load(tmp_path)


@pytest.mark.parametrize("k", [0, 65])
def test_k_must_fit(k):
    with pytest.raises(ValueError, match="k: must lie between 1 and d_sae = 64"):
        sae.create("topk", 16, 64, k)


def test_unknown_variant():
    with pytest.raises(ValueError, match="known: batchtopk, topk"):
        sae.create("gelu", 16, 64, 5)
