"""What is spent on padding is counted right, and the dictionaries that are compared differ in what is said of them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from whisper_sae import cache
from whisper_sae.activations import streaming
from whisper_sae.experiments import padding, pipeline, training_data

VALID = (15, 5, 20, 10)  # of 20 frames a window; each window is of a speaker of its own


class Knows:
    """Says the first dimension of a frame exactly; latent 0 fires where it is above 0, 1 where it is not, 2 never."""

    d_sae = 3

    def encode(self, x):
        return torch.stack([x[:, 0].relu(), (-x[:, 0]).relu(), 0 * x[:, 0]], dim=1)

    def decode(self, f):
        return torch.stack([f[:, 0] - f[:, 1], 0 * f[:, 0]], dim=1)


def said(numbers):
    """Valid frames are (1, row), frames of padding (-1, row); every fifth valid frame is (-1, row), too."""
    hidden = torch.zeros(len(numbers), 20, 2)
    kinds = np.zeros((len(numbers), 20), np.uint8)
    for row, kind, number in zip(hidden, kinds, numbers, strict=True):
        row[:, 1] = torch.arange(20)
        row[:, 0] = -1
        row[: VALID[number], 0] = 1
        row[: VALID[number] : 5, 0] = -1
        kind[: VALID[number]] = 2
    return {"site": hidden}, kinds


@pytest.fixture
def every():
    pieces = np.array([[window, 0, valid] for window, valid in enumerate(VALID)])
    source = streaming.Live(said, pieces, {"site": 2}, batch=3, positions=20, padded=True)
    clips = pd.DataFrame({"split": "validation", "speaker": list("abcd"), "id": list("wxyz")})
    return training_data.Fed(source, clips, pd.DataFrame({"clip": range(4), "heard": range(4)}), 0)


def test_what_is_spent_is_counted(every):
    told, error = padding.spent(Knows(), every, "site")
    padded = 80 - sum(VALID)
    negative = sum(-(-n // 5) for n in VALID)  # valid frames on which latent 1 fires
    assert told["l0"] == told["l0_padding"] == 1
    assert told["firings_on_padding"] == pytest.approx(padded / 80)
    assert told["mostly_padding"] == pytest.approx(1 / 3) == told["rate_higher"], "latent 1, which is on all padding"
    assert told["dead"] == pytest.approx(1 / 3), "latent 2"
    assert negative < padded
    np.testing.assert_allclose(error, [sum(row**2 for row in range(n)) for n in VALID])
    x = torch.cat([said([n])[0]["site"][0] for n in range(4)])
    away = (x - x.mean(dim=0)).square().sum(dim=1) - x[:, 1].square()  # explained of each frame
    where = torch.from_numpy(np.concatenate([np.arange(20) >= n for n in VALID]))
    assert told["explained_on_padding"] == pytest.approx(float(away[where].sum() / away.sum()), rel=1e-4)
    right = torch.cat([said([n])[0]["site"][0][:v] for n, v in enumerate(VALID)])
    spread = (right - right.mean(dim=0)).square().sum()
    assert told["fvu"] == pytest.approx(float(right[:, 1].square().sum() / spread)) and told["speakers"] == 4


@pytest.fixture
def compared(small_whisper, run_for, corpus, data):
    def compare(folder=None, **fields):
        run = run_for(small_whisper, folder or corpus(), sweep_tokens=3_000, **fields)
        cache.make(pipeline.clips(run, 0))
        step = cache.make(padding.learnt(run, 0))
        return step, padding.scores(step).set_index("dictionary")

    return compare


def test_the_first_learns_padding_and_the_others_do_not(compared):
    step, told = compared(variant="batchtopk", windows="packed", patience=3, k=16)
    share = 1 - step.facts["padding"]
    assert 0.3 < share < 0.95 and step.facts["latents"] == 128 and step.facts["clips"] == 20, "not those for test"
    first, raised, same, many, seed = told.itertuples()
    assert list(told.index) == ["all frames", "its valid frames, k raised", "its valid frames",
                                "as many frames, all valid", "the same, another seed"]  # fmt: skip
    assert first.frames == many.frames == seed.frames == 3_000 == many.valid
    assert first.valid == pytest.approx(3_000 * share, abs=1)
    assert raised.valid == raised.frames == same.frames == pytest.approx(first.valid, abs=1)
    assert (first.k, same.k, many.k) == (16, 16, 16) and raised.k == round(first.l0) != 16
    assert first.beside == 1 and many.beside == pytest.approx(first.fvu / many.fvu)
    assert many.fvu != seed.fvu and many.fvu == pytest.approx(seed.fvu, rel=0.5)
    assert not list(step.path.glob("*.pt"))


@pytest.mark.parametrize("variant", ["topk", "relu"])
def test_where_k_is_kept_or_unknown_nobody_raises_it(compared, variant):
    _, told = compared(variant=variant)
    assert list(told.index)[:2] == ["all frames", "its valid frames"] and len(told) == 4
    assert (told.l0 == 4).all() == (variant == "topk")


def test_a_corpus_without_padding(compared, tmp_path):
    """Clips of exactly a window: there is nothing to be spent on."""
    folder, rng = tmp_path / "full", np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for n in range(12):
        soundfile.write(folder / f"{n}.flac", rng.normal(0, 0.1, 32_000), 16_000)
        split = "train" if n < 8 else ("validation", "test")[n % 2]
        rows.append({"file_name": f"{n}.flac", "text": "", "speaker": f"s{n}", "split": split})
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    step, told = compared(folder)
    assert step.facts["padding"] == 0
    spent = ["l0_padding", "firings_on_padding", "explained_on_padding", "mostly_padding", "rate_higher"]
    assert (told[spent] == 0).all(axis=None)


def test_the_key_is_of_what_is_compared(small_whisper, run_for, corpus, data):
    run = run_for(small_whisper, corpus(), variant="batchtopk")
    fields = {"k": 5, "variant": "topk", "sweep_tokens": 99, "dtype": "float32", "focus": "encoder.0.resid"}
    keys = {padding.learnt(replace(run, **{name: value}), 0).key for name, value in fields.items()}
    keys |= {padding.learnt(run, 0).key, padding.learnt(run, 1).key}
    assert len(keys) == len(fields) + 2
    for same in ({"windows": "packed"}, {"shuffle_buffer": 9}, {"patience": 2}, {"on_the_fly": True}):
        assert padding.learnt(replace(run, **same), 0).key == padding.learnt(run, 0).key, same
