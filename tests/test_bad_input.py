"""What goes wrong outside is said in one line that names the file or the field, and costs nothing that was made."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from whisper_sae import cache, profiles
from whisper_sae.data import clip_table
from whisper_sae.experiments import pipeline
from whisper_sae.model import whisper_model

PROJECT = Path(__file__).resolve().parents[1]


def one_line(error: BaseException) -> str:
    said = str(error)
    assert said.strip()
    assert "\n" not in said, said
    assert "\r" not in said, said
    assert len(said) < 700, said
    return said


# --------------------------------------------------------------------------------------------------- speech


def test_two_corpora_of_one_name(small_whisper, corpus, data, run_for, tmp_path):
    folder = corpus()
    shutil.copytree(folder, tmp_path / "elsewhere" / "voices")
    with pytest.raises(clip_table.BadSpeech, match="two are called 'voices'") as said:
        pipeline.clips(run_for(small_whisper, [folder, tmp_path / "elsewhere" / "voices"]), 0)
    one_line(said.value)


def test_balance_over_a_column_that_is_not_there(corpus):
    with pytest.raises(clip_table.BadSpeech, match=r"column 'mood': the table of clips has id, path") as said:
        clip_table.balance(clip_table.read(corpus()), "gender", "mood")
    one_line(said.value)


# ---------------------------------------------------------------------------------------------------- models


def config(folder: Path, name="config.json", **fields) -> None:
    told = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(told | fields))


def weights(folder: Path, keep) -> None:
    path = folder / "model.safetensors"
    kept = {name: tensor.clone() for name, tensor in load_file(path).items() if keep(name)}
    save_file(kept, path, metadata={"format": "pt"})


def cut_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


BAD_MODELS = {
    "no such directory": (shutil.rmtree, ["listener", "no directory"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["listener", "no config.json"]),
    "config that is not JSON": (
        lambda folder: (folder / "config.json").write_text("{'a': \n 1"),
        ["listener", "config.json"],
    ),
    "config that is not Whisper's": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "wav2vec2"}'),
        ["listener", "config.json", "'wav2vec2'", "'whisper'"],
    ),
    "config that names no model": (
        lambda folder: (folder / "config.json").write_text("{}"),
        ["listener"],
    ),
    "no preprocessor": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        ["listener", "preprocessor_config.json cannot be loaded"],
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["listener", "model.safetensors"]),
    "weights cut short": (cut_weights, ["listener", "model.safetensors"]),
    "encoder weights missing": (
        lambda folder: weights(folder, lambda name: "encoder.layers.1.fc" not in name),
        ["listener", "4 encoder weights are missing", "encoder.layers.1.fc1.bias"],
    ),
    "decoder weights alone": (
        lambda folder: weights(folder, lambda name: ".encoder." not in name),
        ["listener", "encoder weights are missing"],
    ),
    "weights of another width": (
        lambda folder: config(folder, d_model=48),
        ["listener", "is (32, 32) in model.safetensors, config.json asks for (32, 48)"],
    ),
    "mel bins": (
        lambda folder: config(folder, "preprocessor_config.json", feature_size=128),
        ["listener", "preprocessor_config.json", "feature_size 128", "num_mel_bins 80"],
    ),
    "window": (
        lambda folder: config(folder, "preprocessor_config.json", chunk_length=30, n_samples=480_000),
        ["listener", "preprocessor_config.json", "480,000", "32,000"],
    ),
}


@pytest.fixture
def listener(small_whisper, tmp_path) -> Path:
    """A copy of the small Whisper, to be spoilt."""
    return Path(shutil.copytree(small_whisper, tmp_path / "listener"))


@pytest.mark.parametrize("what", BAD_MODELS)
def test_bad_model(what, listener, corpus, data, run_for):
    spoil, words = BAD_MODELS[what]
    run = run_for(listener, corpus(voices=1, clips=2))
    before = cache.make(pipeline.clips(run, 0))
    spoil(listener)
    with pytest.raises(whisper_model.BadModel) as said:
        cache.make(pipeline.activations(run, 0))
    for word in words:
        assert word in one_line(said.value)
    before.verify()
    assert len(cache.need(pipeline.clips(run, 0)).table("clips.csv")) == 2


def test_encoder_weights_alone_will_do(listener, loaded, corpus, data, run_for):
    weights(listener, lambda name: ".encoder." in name)
    deaf = whisper_model.load(str(listener), "cpu")
    sound = np.sin(np.arange(8_000) / 20).astype(np.float32)
    heard = [
        whisper_model.record(whisper, whisper_model.mel(whisper, [sound]), ["encoder.1.resid"])
        for whisper in (deaf, loaded)
    ]
    assert heard[0]["encoder.1.resid"].equal(heard[1]["encoder.1.resid"])
    with pytest.raises(
        whisper_model.BadModel, match=r"listener: only encoder weights here, so no decoder sites"
    ) as said:
        whisper_model.record(deaf, whisper_model.mel(deaf, [sound]), ["decoder.0.resid"], tokens=np.zeros((1, 1)))
    one_line(said.value)
    run = run_for(listener, corpus(voices=1, clips=2), sites=("*.1.resid",))
    cache.make(pipeline.clips(run, 0))
    assert list(cache.make(pipeline.activations(run, 0)).facts["sites"]) == ["encoder.1.resid"]
    with pytest.raises(whisper_model.BadModel, match="only encoder weights here") as said:
        cache.make(pipeline.decoded(run, 0))
    one_line(said.value)


def test_decoder_sites_need_tokens(loaded):
    with pytest.raises(whisper_model.BadModel, match="tokens: decoder sites need the tokens") as said:
        whisper_model.record(loaded, whisper_model.mel(loaded, [np.zeros(100, np.float32)]), ["decoder.0.resid"])
    one_line(said.value)


def test_a_pattern_that_matches_nothing(small_whisper, corpus, data, run_for):
    run = run_for(small_whisper, corpus(voices=1, clips=1), sites=("encoder.*.resid", "encoder.7.resid"))
    cache.make(pipeline.clips(run, 0))
    with pytest.raises(
        whisper_model.BadModel, match=r"sites: 'encoder\.7\.resid' matches nothing; .* encoder\.0 … 1"
    ) as said:
        cache.make(pipeline.activations(run, 0))
    one_line(said.value)


def test_a_pattern_where_one_name_is_wanted(loaded):
    with (
        pytest.raises(whisper_model.BadModel, match=r"'encoder\.\*\.resid' is a pattern") as said,
        whisper_model.at(loaded, {"encoder.*.resid": print}),
    ):
        pass
    one_line(said.value)


def test_a_clip_longer_than_the_window(loaded):
    whisper_model.mel(loaded, [np.zeros(32_000, np.float32)])
    with pytest.raises(whisper_model.BadModel, match="32,001 samples is longer than the window of 32,000") as said:
        whisper_model.mel(loaded, [np.zeros(100, np.float32), np.zeros(32_001, np.float32)])
    one_line(said.value)


def test_a_device_that_is_not_there(small_whisper):
    with pytest.raises(whisper_model.BadModel, match=r"device: .*'abacus'") as said:
        whisper_model.load(str(small_whisper), "abacus")
    one_line(said.value)


def test_real_encoder_without_a_decoder(shared):
    name = str(shared / "whisper-tiny.en-encoder")
    whisper = whisper_model.load(name, "cpu")
    assert whisper.decoder is None
    with pytest.raises(whisper_model.BadModel, match="only encoder weights here") as said:
        whisper.require_decoder()
    assert name in one_line(said.value)


# --------------------------------------------------------------------------------------- profiles and commands


def test_unknown_profile():
    with pytest.raises(ValueError, match=r"profile: there is no 'larg'; did you mean 'large'\?") as said:
        profiles.choose("larg")
    one_line(said.value)


def test_a_field_misspelt(tmp_path):
    (tmp_path / "mine.toml").write_text('base = "demo"\nbatch_window = 4\n')
    with pytest.raises(
        ValueError, match=r"mine\.toml: unknown field 'batch_window'; did you mean 'batch_windows'"
    ) as e:
        profiles.choose(str(tmp_path / "mine.toml"))
    one_line(e.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch"], ["'nosuch'", "demo"]),
        pytest.param(["nosuch.toml"], ["nosuch.toml"], marks=pytest.mark.slow),
        pytest.param(["demo", "--sed", "1"], ["--sed"], marks=pytest.mark.slow),
    ],
)
def test_the_command_says_what_is_wrong_and_exits_with_2(arguments, words):
    asked = [sys.executable, "-m", "whisper_sae", *arguments]
    told = subprocess.run(asked, cwd=PROJECT, capture_output=True, text=True)
    assert told.returncode == 2
    assert told.stdout == ""
    assert len(told.stderr.splitlines()) == 1, told.stderr
    for word in words:
        assert word in told.stderr
