"""Text encoders are read without padding, offline, from safetensors alone; the bundled one is what it says."""

import hashlib
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from whisper_sae.activations import modules, store
from whisper_sae.model import encoders

TEXTS = ["sad piano", "calm", "happy happy guitar music for a long day"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A small T5 encoder and a small BERT, with a tokenizer of a few words and one special mark."""
    words = ["<pad>", "</s>", "<unk>", "happy", "sad", "calm", "piano", "guitar", "music", "for", "a", "long", "day"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )
    nets = {
        "t5": (T5EncoderModel, T5Config(num_layers=3, d_model=32, d_kv=8, d_ff=64, num_heads=4, vocab_size=20)),
        "bert": (BertModel, BertConfig(num_hidden_layers=3, hidden_size=32, num_attention_heads=4,
                                       intermediate_size=64, vocab_size=20)),
    }  # fmt: skip
    found = {}
    for name, (kind, config) in nets.items():
        found[name] = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            kind(config).save_pretrained(found[name])
        fast.save_pretrained(found[name])
    return found


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_the_site_is_the_encoders_answer_and_layers_are_found(folders, kind):
    encoder = encoders.load(str(folders[kind]))
    inputs, kinds = encoder.collate(TEXTS)
    said = modules.record(encoder.net, inputs, [encoder.site, *encoder.layers])
    torch.testing.assert_close(said[encoder.site], encoder.net(**inputs).last_hidden_state)
    assert len(encoder.layers) == 3 and kinds.shape == said[encoder.site].shape[:2]
    assert (kinds[1] > 0).sum() == 2 and kinds[1, 1] == encoders.SPECIAL and kinds[1, 0] == encoders.WORD


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_the_mean_over_tokens_is_the_same_in_any_batch(folders, kind):
    """A mean that took padding in would depend on the longest text of the batch."""
    encoder = encoders.load(str(folders[kind]))
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.embed(TEXTS), alone, atol=1e-5)
    inputs, _ = encoder.collate(TEXTS)
    with_padding = encoder.net(**inputs).last_hidden_state.mean(dim=1).numpy()
    assert np.abs(with_padding[1] - alone[1]).max() > 1e-3


def test_what_is_stored_has_no_padding_and_its_means_are_the_embeddings(folders, tmp_path):
    encoder = encoders.load(str(folders["t5"]))
    modules.write(tmp_path, encoder.net, TEXTS, [encoder.site], encoder.collate, positions=12, batch=2, dtype="float32")
    held = store.Activations(tmp_path)
    assert held.counts.tolist() == [len(one) for one in encoder.pieces(TEXTS)] == [3, 2, 9]
    means = np.stack([held.window(encoder.site, n).mean(axis=0) for n in range(3)])
    np.testing.assert_allclose(means, encoder.embed(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [("/no/such/folder", "there is no directory"), ("nobody/nothing-at-all", "cannot be loaded")],
)
def test_what_cannot_be_loaded_is_named_in_one_line(name, said, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(encoders.BadEncoder, match=said) as error:
        encoders.load(name)
    assert "\n" not in str(error.value)


def test_weights_that_would_run_code_and_weights_that_are_lacking_are_refused(folders, tmp_path):
    for path in folders["bert"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    torch.save({}, tmp_path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(encoders.BadEncoder, match="cannot be loaded"):
        encoders.load(str(tmp_path))


def test_a_text_that_is_too_long_is_named(folders):
    encoder = encoders.load(str(folders["t5"]))
    with pytest.raises(encoders.BadEncoder, match=r"text 1: 21 tokens, and .* takes 16"):
        encoder.longest(["calm", "sad " * 20])
    assert encoder.longest(TEXTS) == 9


def test_identity_follows_the_weights(folders):
    assert encoders.identity(str(folders["t5"])) != encoders.identity(str(folders["bert"]))


def test_the_bundled_encoder_is_the_published_one_read_offline_and_its_package_runs_nothing(monkeypatch):
    def refuse(*_args, **_named):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder = Path(encoders.find(encoders.BUNDLED))
    with open(folder / "model.safetensors", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", "as published"
    encoder = encoders.load()
    assert encoder.site == "encoder.layer.5" and encoders.PACKAGE not in sys.modules
    assert "sentence_transformers" not in sys.modules
    x = encoder.embed(["a cheerful tune", "a merry song", "the mortgage contract"])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert x.shape == (3, 384) and x[0] @ x[1] > 0.5 > x[0] @ x[2]
