"""The sparse autoencoder: its formula, its invariants, its file."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whisper_sae import devices
from whisper_sae.sae import architectures

VARIANTS = list(architectures.VARIANTS)


def frames(n=64, d=16, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def exactly(monkeypatch):
    """Calls are chosen in float32, as the dense path does."""
    monkeypatch.setattr(architectures, "multiplies_bfloat16", lambda device: False)


def some(variant, d=16, latents=64, k=5, seed=0):
    """An SAE in no special state: biases and thresholds are drawn at random."""
    coder, draw = architectures.create(variant, d, latents, k, seed), torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(coder.b_enc, std=0.1, generator=draw)
    torch.nn.init.normal_(coder.b_dec, generator=draw)
    if variant == "jumprelu":
        torch.nn.init.uniform_(coder.threshold, 0.2, 1.5, generator=draw)
    elif variant in ("batchtopk", "matryoshka"):
        coder.threshold.fill_(1.0)
    return coder


@pytest.mark.parametrize("variant", VARIANTS)
def test_formula(variant):
    """Written out once more, with loops where the code has tricks."""
    coder, x = some(variant).eval(), frames()
    pre = (x - coder.b_dec) @ coder.W_enc + coder.b_enc
    if variant in ("topk", "multitopk"):
        weakest = pre.sort(dim=1, descending=True).values[:, 4:5]
        kept = (pre >= weakest) & (pre > 0)
    elif variant in ("relu", "tied"):
        kept = pre > 0
    else:
        kept = (pre > coder.threshold) & (pre > 0)
    f = coder.encode(x)
    torch.testing.assert_close(f, torch.where(kept, pre, 0.0))
    torch.testing.assert_close(coder(x), f @ coder.W_dec + coder.b_dec)
    assert variant != "tied" or torch.equal(coder.W_enc, coder.W_dec.T)


@given(st.integers(1, 40), st.integers(2, 12), st.integers(1, 12), st.integers(0, 5))
def test_l0_in_training(n, d, k, seed):
    x = frames(n, d, seed)
    topk = architectures.create("topk", d, 24, k, seed).train()
    assert ((topk.encode(x) > 0).sum(dim=1) <= k).all()
    batch = architectures.create("batchtopk", d, 24, k, seed).train()
    for _ in range(2):  # the second time the last threshold is the guess
        assert (batch.encode(x) > 0).sum() <= k * n
    positive = (batch.pre(x) > 0).sum()
    assert (batch.encode(x) > 0).sum() == min(k * n, positive)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(VARIANTS), st.integers(1, 40), st.integers(2, 12), st.integers(8, 40), st.integers(1, 8),
    st.integers(0, 9),
)  # fmt: skip
def test_the_sparse_path_equals_autograd(exactly, variant, n, d, latents, k, seed):
    """Same reconstruction, terms and gradients as the dense formula, whatever the shape; ties, silent frames too."""
    coder = some(variant, d, latents, k, seed).train()
    x = frames(n, d, seed)
    x[: n // 3] = coder.b_dec.detach()  # frames on which next to nothing is called
    x[n // 2 :] = x[-1].clone()  # and ties
    found = []
    for dense in (True, False):
        coder.zero_grad()
        if variant in ("batchtopk", "matryoshka"):
            coder.threshold.zero_()
        said = densely(coder, x) if dense else coder.resay(x)
        error = (said.missing * torch.arange(1.0, d + 1)).square().sum()
        (error + sum(term * (i + 2) for i, term in enumerate(coder.terms(x, said).values()))).backward()
        found.append([said.missing.detach(), error.detach(), *(part.grad.clone() for part in coder.parameters())])
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-5 * float(dense.abs().max() + 1e-3))


def densely(coder, x):
    """What `resay` gives, by autograd through the dense formula."""
    centred, pre = x - coder.b_dec, coder.pre(x)
    rough = coder.rough_pre(
        centred
    ).detach()  # chosen by the same sums: which of two equal frames is higher is rounding
    calls = architectures.Calls(*coder.chosen(rough), len(x), coder.d_sae)
    at = pre[calls.frame, calls.latent]
    f = coder.answer(at, calls.latent)
    full = torch.zeros_like(pre).index_put((calls.frame, calls.latent), f)
    return architectures.Resaid(pre.detach(), calls, at, f, centred, centred - full @ coder.W_dec)


def test_nested_dictionaries_are_what_matryoshka_is_judged_by(exactly):
    coder, x = some("matryoshka").train(), frames()
    said = densely(coder, x)
    full = torch.zeros(len(x), 64).index_put((said.calls.frame, said.calls.latent), said.f)
    errors = [(x - full[:, :size] @ coder.W_dec[:size] - coder.b_dec).square().mean() for size in (4, 8, 16, 32, 64)]
    torch.testing.assert_close(coder.terms(x, said)["reconstruction"], torch.stack(errors).mean())


@pytest.mark.parametrize("variant", VARIANTS)
def test_choosing_in_half_precision_says_what_is_chosen_exactly(variant, monkeypatch):
    if not devices.multiplies_bfloat16(torch.device("cpu")):
        pytest.skip("this processor has no products of bfloat16 matrices")
    monkeypatch.setattr(architectures, "multiplies_bfloat16", lambda device: True)
    coder, x = some(variant, 32, 256, 8).train(), frames(128, 32)
    said = coder.resay(x)
    exact = coder.pre(x)[said.calls.frame, said.calls.latent]
    torch.testing.assert_close(said.pre, exact, rtol=1e-4, atol=1e-4)
    dense = densely(some(variant, 32, 256, 8).train(), x)
    assert abs((said.f > 0).sum() / (dense.f > 0).sum() - 1) < 0.02  # at most calls on the edge are chosen otherwise


def test_geometric_median_is_not_moved_by_an_outlier():
    x = torch.cat([frames(200, 8), torch.full((20, 8), 1e4)])
    assert architectures.geometric_median(x).norm() < 1 < x.mean(dim=0).norm()
    coder = architectures.create("topk", 8, 16, 2)
    coder.start_on(x, centre="median")
    torch.testing.assert_close(coder.b_dec.detach(), architectures.geometric_median(x))


def test_a_latent_can_begin_anew():
    coder, x = some("relu").train(), frames(2)
    usual = coder.W_enc[:, 5:].norm(dim=0).mean()
    coder.point_at(torch.tensor([1, 4]), x)
    directions = torch.nn.functional.normalize(x - coder.b_dec, dim=1)
    torch.testing.assert_close(coder.W_dec[[1, 4]].detach(), directions.detach())
    torch.testing.assert_close(coder.W_enc[:, 4].norm(), 0.2 * usual, rtol=0.05, atol=0)
    assert coder.b_enc[1] == coder.b_enc[4] == 0


@pytest.mark.parametrize("variant", ["topk", "batchtopk", "matryoshka", "jumprelu", "relu"])
def test_a_latent_that_was_reset_is_active_on_its_frame_again(variant):
    coder, x = architectures.create(variant, 16, 64, 4, 0), frames(512, 16)
    coder.start_on(x)
    coder.b_enc.data[32:] = -100.0
    if variant == "jumprelu":
        coder.b_enc.data[32:], coder.threshold.data[32:] = 0.0, 100.0
    coder.train()
    assert not (coder.encode(x)[:, 32:] > 0).any(), "they are dead"
    coder.point_at(torch.arange(32, 64), x[:32])
    active = coder.encode(x)[:32, 32:].diagonal() > 0
    assert active.float().mean() > 0.75, "each on the frame that it was pointed at"


@pytest.mark.parametrize("variant, penalty", [("relu", 0.0), ("topk", 1.0), ("jumprelu", -1.0)])
def test_a_penalty_must_suit_the_variant(variant, penalty):
    with pytest.raises(ValueError, match=f"penalty: {variant} takes"):
        architectures.create(variant, 8, 16, 2, penalty=penalty)


def test_frames_may_come_in_any_shape():
    coder, x = architectures.create("topk", 16, 64, 5).eval(), frames(12)
    torch.testing.assert_close(coder(x.view(3, 4, 16)), coder(x).view(3, 4, 16))
    assert coder.encode(x.view(3, 4, 16)).shape == (3, 4, 64) and coder.encode(x[0]).shape == (64,)


def test_batchtopk_finds_the_same_weakest_call_with_any_guess():
    coder, x = architectures.create("batchtopk", 16, 64, 5).train(), frames(256)
    exact = coder.pre(x).flatten().topk(5 * 256).values.min().item()
    for guess in (0.0, 0.5 * exact, exact, 3 * exact, 1e9):
        coder.threshold.fill_(guess)
        frame, latent = coder.chosen(coder.pre(x).detach())
        assert len(frame) == 5 * 256 and coder.pre(x)[frame, latent].min() == exact


def test_calibrated_threshold_keeps_l0_on_new_frames():
    coder = architectures.create("batchtopk", 32, 256, 8)
    coder.calibrate(frames(2048, 32, seed) for seed in range(4))
    l0 = (coder.eval().encode(frames(4096, 32, 99)) > 0).sum(dim=1).float().mean()
    assert abs(l0 / 8 - 1) < 0.1


def test_outside_training_a_frame_does_not_depend_on_its_batch():
    coder = architectures.create("batchtopk", 16, 64, 5)
    coder.calibrate([frames(512)])
    coder.eval()
    x = frames(50, seed=3)
    alone = torch.cat([coder.encode(row) for row in x.split(1)])
    torch.testing.assert_close(coder.encode(x), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [0.03, 40.0])
def test_scale_is_folded_back_exactly(variant, scale):
    """An SAE of scale·x becomes an SAE of x: the same features fire, in the units of x."""
    coder = architectures.create(variant, 16, 64, 5)
    x = frames(128) / scale
    coder.start_on(x * scale)
    if variant in ("batchtopk", "matryoshka"):
        coder.calibrate([x * scale])
        coder.threshold *= 0.999  # no call lies on it
    coder.eval()
    f, x_hat = coder.encode(x * scale), coder(x * scale)
    coder.undo_scale(scale)
    torch.testing.assert_close(coder.encode(x) * scale, f, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(coder(x) * scale, x_hat, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(coder.W_dec.norm(dim=1), torch.ones(64), atol=1e-5, rtol=0)


def test_parallel_gradient_is_gone():
    coder = architectures.create("topk", 16, 64, 5)
    coder(frames()).square().sum().backward()
    before = (coder.W_dec.grad * coder.W_dec).sum(dim=1).abs().max()
    coder.drop_parallel_gradient()
    assert before > 1 and (coder.W_dec.grad * coder.W_dec).sum(dim=1).abs().max() < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_file_round_trip(variant, tmp_path):
    coder = architectures.create(variant, 16, 64, 5, seed=3)
    torch.nn.init.constant_(coder.threshold, 0.7)
    architectures.save(coder, tmp_path, site="encoder.1.resid")
    again = architectures.load(tmp_path)
    assert torch.equal(again(frames()), coder.eval()(frames())) and type(again) is type(coder)
    told = json.loads((tmp_path / "sae.json").read_text())
    assert told["site"] == "encoder.1.resid" and told["d_sae"] == 64
    (tmp_path / "sae.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="not a saved SAE"):
        architectures.load(tmp_path)


@pytest.mark.parametrize("k", [0, 65])
def test_k_must_fit(k):
    with pytest.raises(ValueError, match="k: must lie between 1 and d_sae = 64"):
        architectures.create("topk", 16, 64, k)


def test_unknown_variant():
    with pytest.raises(ValueError, match="known: batchtopk, topk, multitopk"):
        architectures.create("gelu", 16, 64, 5)
