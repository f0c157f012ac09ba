"""Whisper, and named places inside it that one can listen to or talk into.

A *site* is such a place. With `i` a layer, counted from 0, in `encoder` or `decoder`:

    encoder.embed          what goes into layer 0            d_model
    encoder.i.resid        the residual stream after layer i d_model
    encoder.i.attn         what self-attention adds          d_model
    encoder.i.mlp_hidden   the MLP's neurons, after GELU     ffn_dim
    encoder.i.mlp          what the MLP adds                 d_model
    decoder.i.cross        what cross-attention adds         d_model
"""

import fnmatch
import functools
import hashlib
from contextlib import ExitStack, contextmanager
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

RATE = 16_000
UNTRAINED = "untrained:"
"""Before the name of a model: its twin of the same config, whose weights are drawn at random and never trained."""


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


def load(name: str, device: str = "auto", attention: str = "sdpa") -> Whisper:
    """Load Whisper by hub id or from a local directory, in float32, in evaluation mode.

    `untrained:` before the name gives its twin with random weights, the same on every call.
    A directory that holds only encoder weights is welcome; see `Whisper.require_decoder`. `attention="eager"` is
    what attention weights need.
    Raises BadModel: no such directory, no config, not a Whisper, weights missing, hub out of reach.
    """
    bare = name.removeprefix(UNTRAINED)
    where = str(Path(bare).expanduser())
    target = pick(device)
    config = _config(bare)
    said = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its table of missing weights: what is missing is checked below
    transformers.logging.disable_progress_bar()
    part = "preprocessor_config.json"
    try:
        features = WhisperFeatureExtractor.from_pretrained(where)
        if bare == name:
            part = "model.safetensors"
            whole, report = WhisperForConditionalGeneration.from_pretrained(
                where,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported, and checked below
                attn_implementation=attention,
                dtype=torch.float32,
                use_safetensors=True,
            )
        else:
            whole, report = _untrained(where, config, attention), {"missing_keys": [], "mismatched_keys": []}
    except Exception as error:  # transformers raises a dozen kinds; each becomes one line
        raise _unloadable(where, part, error) from None
    finally:
        transformers.logging.set_verbosity(said)
        transformers.logging.enable_progress_bar()
    _check_features(where, config, features)
    missing = set(report["missing_keys"])
    if lost := sorted(key for key in missing if ".encoder." in key):
        raise BadModel(f"{where}: {len(lost)} encoder weights are missing, the first is {lost[0]}")
    for key, found, asked in sorted(report["mismatched_keys"]):
        raise BadModel(f"{where}: {key} is {tuple(found)} in model.safetensors, config.json asks for {tuple(asked)}")
    whole = whole.to(target).eval().requires_grad_(False)
    heard_only = any(".decoder." in key for key in missing)
    return Whisper(
        name=name,
        config=config,
        features=features,
        encoder=whole.model.encoder,
        decoder=None if heard_only else whole.model.decoder,
        whole=None if heard_only else whole,
        tokenizer=None if heard_only else _tokenizer(where, whole.generation_config),
    )


def _untrained(where: str, config: WhisperConfig, attention: str) -> WhisperForConditionalGeneration:
    """Weights as Whisper's are drawn before any training, from seed 0; the rest as the trained model has it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = WhisperForConditionalGeneration._from_config(config, attn_implementation=attention, dtype=torch.float32)
    if not Path(where).is_dir() or (Path(where) / "generation_config.json").exists():
        whole.generation_config = GenerationConfig.from_pretrained(where)
    return whole


def _tokenizer(where: str, generation) -> WhisperTokenizer | None:
    """None where a directory has none: WhisperTokenizer would make an empty one."""
    if Path(where).is_dir() and not any((Path(where) / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return None
    several = {"language": "en", "task": "transcribe"} if getattr(generation, "is_multilingual", False) else {}
    try:
        return WhisperTokenizer.from_pretrained(where, **several)
    except Exception as error:  # transformers raises a dozen kinds; each becomes one line
        raise _unloadable(where, "tokenizer.json", error) from None


def _config(name: str) -> WhisperConfig:
    folder = Path(name).expanduser()
    if not folder.is_dir() and name.startswith((".", "/", "~")):
        raise BadModel(f"model: there is no directory {folder}")
    if folder.is_dir() and not (folder / "config.json").is_file():
        files = "config.json, model.safetensors and preprocessor_config.json"
        raise BadModel(f"{folder}: no config.json; a model directory has {files}")
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder) if folder.is_dir() else name)
    except Exception as error:  # transformers raises a dozen kinds; each becomes one line
        raise _unloadable(name, "config.json", error) from None
    if not isinstance(config, WhisperConfig):
        raise BadModel(f"{name}: config.json: model_type is {config.model_type!r}, not 'whisper'")
    return config


def _unloadable(name: str, part: str, error: Exception) -> BadModel:
    hint = "" if Path(name).expanduser().is_dir() else "; where the hub is out of reach, give a local directory"
    return BadModel(f"{name}: {part} cannot be loaded{hint}: {' '.join(str(error).split())[:300]}")


@functools.cache
def identity(name: str) -> str:
    """What a model is, for the key of a result: a digest of a directory's files, or a hub id with its commit."""
    bare = name.removeprefix(UNTRAINED)
    folder = Path(bare).expanduser()
    if folder.is_dir():
        total = hashlib.sha256((name[: -len(bare)]).encode())
        kinds = (".json", ".safetensors") if bare == name else (".json",)
        for path in sorted(path for path in folder.iterdir() if path.suffix in kinds):
            with open(path, "rb") as file:
                total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()[:12]
    return f"{name}@{_config(bare)._commit_hash}"


def pick(device: str) -> torch.device:
    """The device of that name; `auto` is cuda, else mps, else cpu. BadModel where this machine has no such device."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros((), device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise BadModel(f"device: {device!r} cannot be used here: {' '.join(str(error).split())[:200]}") from None


def _check_features(where: str, config: WhisperConfig, features: WhisperFeatureExtractor) -> None:
    if features.feature_size != config.num_mel_bins:
        raise BadModel(
            f"{where}: preprocessor_config.json: feature_size {features.feature_size} is not "
            f"config.json's num_mel_bins {config.num_mel_bins}"
        )
    window = 2 * features.hop_length * config.max_source_positions
    if features.n_samples != window or features.sampling_rate != RATE:
        raise BadModel(
            f"{where}: preprocessor_config.json: windows of {features.n_samples:,} samples at "
            f"{features.sampling_rate} Hz; config.json asks for {window:,} at {RATE}"
        )


# --------------------------------------------------------------------------------------------------- sites


def sites(config: WhisperConfig, wanted=("*",)) -> dict[str, int]:
    """The sites that match any of the patterns `wanted`, in the order of the model, with their widths.

    Raises BadModel for a pattern that matches nothing.
    """
    every = {}
    for side, layers, ffn in [
        ("encoder", config.encoder_layers, config.encoder_ffn_dim),
        ("decoder", config.decoder_layers, config.decoder_ffn_dim),
    ]:
        every[f"{side}.embed"] = config.d_model
        for i in range(layers):
            every[f"{side}.{i}.attn"] = config.d_model
            if side == "decoder":
                every[f"{side}.{i}.cross"] = config.d_model
            every[f"{side}.{i}.mlp_hidden"] = ffn
            every[f"{side}.{i}.mlp"] = config.d_model
            every[f"{side}.{i}.resid"] = config.d_model
    for pattern in wanted:
        if not fnmatch.filter(every, pattern):
            raise BadModel(
                f"sites: {pattern!r} matches nothing; this model has encoder.0 … {config.encoder_layers - 1} and "
                f"decoder.0 … {config.decoder_layers - 1}, each with attn, mlp_hidden, mlp, resid (decoder: cross), "
                "and encoder.embed, decoder.embed"
            )
    return {site: width for site, width in every.items() if any(fnmatch.fnmatch(site, p) for p in wanted)}


def _place(whisper: Whisper, site: str) -> tuple[nn.Module, str]:
    """The module of a site, and whether the site is its input or its output."""
    if site not in sites(whisper.config):
        sites(whisper.config, [site])  # raises, with the list of right names
        raise BadModel(f"site: {site!r} is a pattern; one name is wanted here")
    side, *rest = site.split(".")
    layers = (whisper.encoder if side == "encoder" else whisper.require_decoder()).layers
    if rest == ["embed"]:
        return layers[0], "input"
    layer = layers[int(rest[0])]
    return {
        "resid": (layer, "output"),
        "attn": (layer.self_attn, "output"),
        "cross": (getattr(layer, "encoder_attn", None), "output"),
        "mlp_hidden": (layer.fc2, "input"),  # what the activation function says, whatever it is
        "mlp": (layer.fc2, "output"),
    }[rest[1]]


@contextmanager
def watching(module: nn.Module, see, side: str = "output"):
    """Call `see` with what goes into (`input`) or comes out of (`output`) a module; what it returns is said instead.

    The hook leaves with the block, whatever happens in it. Modules that return a tuple and modules that return a
    tensor are the same to `see`: in transformers 5 Whisper's layers return a tensor, before they returned a tuple.
    """

    def after(_module, _inputs, output):
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        new = see(hidden)
        if new is not None:
            return (new, *rest) if isinstance(output, tuple) else new

    def before(_module, inputs, named):
        hidden = inputs[0] if inputs else named["hidden_states"]
        new = see(hidden)
        if new is not None:
            return ((new, *inputs[1:]), named) if inputs else (inputs, {**named, "hidden_states": new})

    if side == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def at(whisper: Whisper, see: dict):
    """`watching` at several sites at once: `see` maps site names to functions."""
    with ExitStack() as stack:
        for site, look in see.items():
            module, side = _place(whisper, site)
            stack.enter_context(watching(module, look, side))
        yield


# ------------------------------------------------------------------------------------------------- listening


def mel(whisper: Whisper, sounds: list[np.ndarray]) -> torch.Tensor:
    """Log-mel spectrograms of 16 kHz clips, each padded with silence to a window: (clip, mel bin, mel frame)."""
    for sound in sounds:
        if len(sound) > whisper.window:
            raise BadModel(f"a clip of {len(sound):,} samples is longer than the window of {whisper.window:,}")
    found = whisper.features(sounds, sampling_rate=RATE, return_tensors="pt", padding="max_length")
    return found.input_features.to(whisper.device)


@torch.no_grad()
def record(whisper: Whisper, mels: torch.Tensor, wanted: list[str], tokens: torch.Tensor | None = None) -> dict:
    """What the named sites say: {site: (clip, position, width)}, float32, on the model's device.

    Encoder sites cost only the encoder. Decoder sites need `tokens`, (clip, position): the decoder is run once over
    them all (teacher forcing). Frames of padding are still among the positions: mask them before any use.
    """
    heard: dict[str, torch.Tensor] = {}
    decoding = any(site.startswith("decoder.") for site in wanted)
    decoder = whisper.require_decoder() if decoding else None
    if decoding and tokens is None:
        raise BadModel("tokens: decoder sites need the tokens that the decoder is given")
    with at(whisper, {site: lambda hidden, site=site: heard.__setitem__(site, hidden) for site in wanted}):
        encoded = whisper.encoder(mels).last_hidden_state
        if decoder is not None:
            decoder(input_ids=tokens.to(whisper.device), encoder_hidden_states=encoded, use_cache=False)
    return {site: heard[site] for site in wanted}
