"""The real SAELens, sparsify and dictionary_learning say the same as ours, in codes and in reconstructions.

They live in an environment of their own: `peers-requirements.txt` says how to make it. `WHISPER_SAE_PEERS` names its
Python; without it these tests are skipped.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from coders import LATENTS, off, settled

from whisper_sae.model import whisper_model
from whisper_sae.sae import architectures, converters, io

ASKED_OF_PEERS = """
import json, sys
import numpy as np, torch
from sae_lens import SAE
from sparsify import SparseCoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK

work = sys.argv[1]
torch.set_num_threads(1)
jobs = json.load(open(f"{work}/jobs.json"))

@torch.no_grad()
def say(kind, folder, x):
    if kind == "saelens":
        coder = SAE.load_from_disk(folder)
        return coder.encode(x), coder(x)
    if kind == "sparsify":
        coder = SparseCoder.load_from_disk(folder)
        best, which, pre = coder.encode(x)
        return torch.zeros_like(pre).scatter_(-1, which, best), coder(x).sae_out
    coder = {"batchtopk": BatchTopKSAE, "topk": AutoEncoderTopK}[kind](x.shape[1], 4 * x.shape[1], 6)
    state = coder.state_dict()
    draw = torch.Generator().manual_seed(0)
    for name in ("encoder.weight", "encoder.bias", "b_dec"):
        state[name] += 0.3 * torch.randn(state[name].shape, generator=draw)
    state["threshold"] = torch.tensor(3.0 if kind == "batchtopk" else -1.0)
    coder.load_state_dict(state)
    torch.save(coder.state_dict(), f"{folder}/ae.pt")
    config = {"trainer": {"dict_class": type(coder).__name__, "k": 6, "layer": 2, "lm_name": "openai/whisper-small"}}
    json.dump(config, open(f"{folder}/config.json", "w"))
    coder = type(coder).from_pretrained(f"{folder}/ae.pt")
    return coder.encode(x), coder(x)

for name, kind, folder, data in jobs:
    codes, x_hat = say(kind, folder, torch.from_numpy(np.load(data)))
    np.savez(f"{work}/{name}.npz", codes=codes.numpy(), x_hat=x_hat.numpy())
"""


@pytest.fixture(scope="module")
def peers() -> Path:
    named = os.environ.get("WHISPER_SAE_PEERS")
    if not named:
        pytest.skip("WHISPER_SAE_PEERS names no Python with SAELens and sparsify: see tests/peers-requirements.txt")
    if not Path(named).is_file():
        pytest.skip(f"WHISPER_SAE_PEERS: no Python at {named}")
    return Path(named)


def ask(peers: Path, work: Path, jobs: list) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What the real packages say: codes and reconstructions of each job, (name, kind, folder, file of frames)."""
    (work / "jobs.json").write_text(json.dumps(jobs, default=str))
    environment = {"PATH": os.environ["PATH"], "HOME": str(work), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [peers, "-I", "-c", ASKED_OF_PEERS, work],
        capture_output=True,
        text=True,
        cwd=work,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = {name: np.load(work / f"{name}.npz") for name, *_ in jobs}
    return {name: (torch.from_numpy(a["codes"]), torch.from_numpy(a["x_hat"])) for name, a in said.items()}


def test_the_real_packages_say_the_same(peers, saved, frames, tmp_path):
    np.save(tmp_path / "frames.npy", frames.numpy())
    jobs = []
    for variant in architectures.VARIANTS:
        folder = saved(variant, variant)
        jobs.append((f"{variant}-saelens", "saelens", io.to_saelens(folder, tmp_path / f"{variant}-1")))
        if variant in ("topk", "multitopk"):
            jobs.append((f"{variant}-sparsify", "sparsify", io.to_sparsify(folder, tmp_path / f"{variant}-2")))
    said = ask(peers, tmp_path, [(*job, tmp_path / "frames.npy") for job in jobs])
    assert len(said) == len(architectures.VARIANTS) + 2
    for name, (codes, x_hat) in said.items():
        coder = architectures.load(tmp_path / name.split("-")[0])
        sure = settled(coder, frames)
        worst = ((codes - coder.encode(frames)).abs() * sure).max()
        assert worst < 1e-5, name
        assert sure.float().mean() > 0.99, name
        whole = sure.all(dim=1)
        assert off(x_hat[whole], coder(frames)[whole]) < 1e-5, name
        assert 1 < (codes > 0).sum(dim=1).float().mean() < LATENTS, name


def test_what_dictionary_learning_saves_is_read(peers, frames, tmp_path):
    np.save(tmp_path / "frames.npy", frames.numpy())
    jobs = []
    for kind in ("batchtopk", "topk"):
        (tmp_path / kind / "layer_3").mkdir(parents=True)
        jobs.append((kind, kind, tmp_path / kind / "layer_3", tmp_path / "frames.npy"))
    for name, (codes, x_hat) in ask(peers, tmp_path, jobs).items():
        told = converters.from_audiosae(tmp_path / name / "layer_3", tmp_path / name / "out")
        coder = architectures.load(tmp_path / name / "out")
        sure = settled(coder, frames)
        assert (told.variant, told.k, told.about["site"]) == (name, 6, "encoder.2.resid")
        assert ((codes - coder.encode(frames)).abs() * sure).max() < 1e-5
        assert off(x_hat[sure.all(dim=1)], coder(frames)[sure.all(dim=1)]) < 1e-5


def test_real_frames_are_told_alike(peers, shared, tmp_path):
    """At Whisper's own sizes: a layer of tiny.en, 3,072 latents, codes of up to 80."""
    whisper = whisper_model.load(str(shared / "whisper-tiny.en-encoder"), "cpu")
    folder = shared / "speech/librispeech-sample/audio"
    sounds = [soundfile.read(sorted(folder.iterdir())[0], dtype="float32")[0][: whisper.window]]
    x = whisper_model.record(whisper, whisper_model.mel(whisper, sounds), ["encoder.2.resid"])["encoder.2.resid"][0]
    np.save(tmp_path / "frames.npy", x.numpy())
    jobs, coders = [], {}
    for variant in ("batchtopk", "topk"):
        coder = architectures.create(variant, 384, 3072, 32, seed=1)
        coder.start_on(x)
        if variant == "batchtopk":
            coder.calibrate([x])
        architectures.save(coder, tmp_path / variant)
        coders[variant] = architectures.load(tmp_path / variant)
        jobs.append((variant, "saelens", io.to_saelens(tmp_path / variant, tmp_path / f"{variant}-1")))
    jobs.append(("topk-sparsify", "sparsify", io.to_sparsify(tmp_path / "topk", tmp_path / "topk-2")))
    for name, (codes, _) in ask(peers, tmp_path, [(*job, tmp_path / "frames.npy") for job in jobs]).items():
        coder = coders[name.split("-")[0]]
        ours, sure = coder.encode(x).detach(), settled(coder, x, close=3e-5)
        worst = ((codes - ours).abs() * sure).max()
        assert worst < 1e-5, name
        assert sure.float().mean() > 0.95, name
