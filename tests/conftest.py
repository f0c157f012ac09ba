"""A two-layer Whisper with windows of 2 s, a handful of clips, and a store of their own for every test."""

import functools
import os
import shutil
from pathlib import Path

import whisper_sae  # noqa: F401  # isort: skip  -- before torch: it tells OpenMP how to wait
import hypothesis
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from coders import WIDTH, made
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from xdist.scheduler import LoadScopeScheduling

from whisper_sae import profiles
from whisper_sae.model import whisper_model
from whisper_sae.sae import architectures
from whisper_sae.viz import display

PROJECT = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile("here", deadline=None, max_examples=30)  # a busy machine is not a fault
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=200)  # --hypothesis-profile=thorough
hypothesis.settings.load_profile("here")
display.use_style()

FIRST = ("01",)
"""Notebooks whose outputs are compared by default; to run the others takes minutes."""


def is_notebook(file: str) -> bool:
    """Whether a test file makes the demo's steps: a notebook, or the test that runs notebooks."""
    return file.endswith((".ipynb", "test_notebooks.py"))


def pytest_collection_modifyitems(items):
    """Notebooks first, since they take longest; only the first of them by default."""
    items.sort(key=lambda item: not is_notebook(item.path.name))
    for item in items:
        if item.path.suffix == ".ipynb" and not item.path.name.startswith(FIRST):
            item.add_marker(pytest.mark.slow)


class ByFile(LoadScopeScheduling):
    """Tests of one file run in one process, in order; so do all notebooks, which share the demo's steps."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "notebooks" if is_notebook(file) else file


def pytest_xdist_make_scheduler(config, log):
    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="session")
def small_whisper(tmp_path_factory) -> Path:
    """A directory in Hugging Face format: two layers a side, width 32, windows of 2 s (100 frames, 32,000 samples)."""
    folder = tmp_path_factory.mktemp("small_whisper")
    config = WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=40, max_source_positions=100, max_target_positions=32,
        num_mel_bins=80, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None, init_std=0.1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(small_whisper) -> whisper_model.Whisper:
    """The small Whisper, on the CPU. Shared by all tests: watch it, do not change it."""
    return whisper_model.load(str(small_whisper), "cpu")


@pytest.fixture
def rounding(monkeypatch):
    """Every pass of the model rounds in another way, as in other batches, on other processors: ± 1e-6 of each value."""
    draw, record = torch.Generator().manual_seed(0), whisper_model.record

    @functools.wraps(record)  # so that keys are those of the code without it
    def another(*args):
        said = record(*args)
        return {site: x * (1 + 1e-6 * torch.randn(x.shape, generator=draw)) for site, x in said.items()}

    monkeypatch.setattr(whisper_model, "record", another)


@pytest.fixture(scope="session")
def demo() -> whisper_model.Whisper:
    """The Whisper that is bundled, on the CPU. Shared by all tests: watch it, do not change it."""
    return whisper_model.load(str(profiles.DEMO / "whisper"), "cpu")


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Corpora that were written in this process, by what was asked: folders that no test is given, only copies."""
    return tmp_path_factory.mktemp("corpora"), {}


@pytest.fixture
def corpus(tmp_path, written):
    """Writes a corpus: `corpus(name, voices=, clips=, ...)` gives its directory in `audiofolder` layout.

    Clips are hums in noise of 0.3 to 3 s, so some are longer than a window; voices are women and men in turn. With
    `splits` the last voice is for test and the one before for validation. `extra` adds columns of one's own.
    """

    def write(name="voices", voices=6, clips=4, *, splits=True, extra=False, rate=16_000, seed=0) -> Path:
        (home, known), asked = written, (voices, clips, splits, extra, rate, seed)
        if asked not in known:
            known[asked] = put(home / str(len(known)), *asked)
        return Path(shutil.copytree(known[asked], tmp_path / name))

    def put(folder, voices, clips, splits, extra, rate, seed) -> Path:
        (folder / "audio").mkdir(parents=True)
        rng = np.random.default_rng(seed)
        rows = []
        for voice in range(voices):
            gender = ("female", "male")[voice % 2]
            for clip in range(clips):
                file = f"audio/v{voice:02d}_{clip}.flac"
                soundfile.write(folder / file, hum(rng, (200, 110)[voice % 2] + 3 * voice, rate), rate)
                rows.append({"file_name": file, "text": f"clip {clip}", "speaker": f"v{voice:02d}", "gender": gender})
                if splits:
                    ahead = voices - voice - 1
                    rows[-1]["split"] = "train" if ahead > 1 or voices < 3 else ("test", "validation")[ahead]
                if extra:
                    rows[-1] |= {"mood": "calm" if clip % 2 else "", "room": str(clip)}
        pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
        return folder

    return write


def hum(rng: np.random.Generator, pitch: float, rate: int = 16_000, seconds: float | None = None) -> np.ndarray:
    """A tone with overtones in noise: (sample,), of random length between 0.3 and 3 s if no other is given."""
    time = np.arange(int((seconds or rng.uniform(0.3, 3.0)) * rate)) / rate
    sound = sum(np.sin(2 * np.pi * pitch * n * time + rng.uniform(0, 6)) / n for n in range(1, 6))
    swell = 0.55 + 0.45 * np.sin(2 * np.pi * rng.uniform(2, 5) * time)
    return (0.1 * swell * sound + rng.normal(0, 0.01, len(time))).astype(np.float32)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """An empty data folder of this test's own; results go to its `steps`, reports to the folder beside it."""
    monkeypatch.setenv("WHISPER_SAE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("WHISPER_SAE_REPORTS", str(tmp_path / "reports"))
    return tmp_path / "data"


@pytest.fixture
def frames() -> torch.Tensor:
    """What `saved` dictionaries are asked about: (frame, width)."""
    return 3 * torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(5)) + 1


@pytest.fixture
def saved(tmp_path, frames):
    """Writes an SAE of a variant as the project does: `saved(variant)` gives the folder."""

    def save(variant: str, name: str = "ours", **about) -> Path:
        architectures.save(
            made(variant, frames), tmp_path / name, **({"site": "encoder.2.resid", "model": "a model"} | about)
        )
        return tmp_path / name

    return save


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real weights and recorded speech, which are not part of the project."""
    folder = Path(os.environ.get("WHISPER_SAE_SHARED") or PROJECT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; WHISPER_SAE_SHARED says where it is")
    return folder


@pytest.fixture(scope="session")
def run_for():
    """A small profile: `run_for(model_dir, corpus_dirs, **fields)`; one directory or several."""

    def choose(model_dir, corpus_dirs, **given) -> profiles.Profile:
        several = corpus_dirs if isinstance(corpus_dirs, list | tuple) else [corpus_dirs]
        fields = {
            "name": "test",
            "about": "The small Whisper hears a handful of clips.",
            "model": str(model_dir),
            "corpus": tuple(str(folder) for folder in several),
            "sites": ("encoder.*.resid",),
            "focus": "encoder.1.resid",
            "device": "cpu",
            "batch_windows": 2,
            "shard_windows": 4,
            "expansion": 4,
            "k": 4,
            "sweep_variant": ("topk", "relu"),
            "sweep_k": (2, 4),
            "sweep_penalty": (1.0,),
            "sweep_tokens": 0,
            "tokens": 6_000,
            "batch_tokens": 256,
            "dead_tokens": 2_000,
        }
        return profiles.Profile(**fields | given)

    return choose
