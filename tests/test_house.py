"""What is asked for, what is pinned and what is installed agree, and no machine has left its traces."""

import importlib.metadata
import itertools
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = Path(__file__).resolve().parents[1]


def text(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def asked() -> dict:
    return tomllib.loads(text("pyproject.toml"))["project"]


@pytest.fixture(scope="module")
def pinned() -> dict[str, Version]:
    lines = [line for line in text("requirements.lock").splitlines() if line.strip()]
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.]*", line), f"no plain name==version: {line}"
    pairs = [line.split("==") for line in lines]
    found = {canonicalize_name(name): Version(version) for name, version in pairs}
    assert len(found) == len(pairs), "something is pinned twice"
    return found


def test_what_is_asked_for_is_pinned(asked, pinned):
    for line in [*asked["dependencies"], *itertools.chain(*asked["optional-dependencies"].values())]:
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        assert name in pinned, f"{name} is not in requirements.lock"
        assert wanted.specifier.contains(pinned[name]), f"{line}, but {pinned[name]} is pinned"
    assert pinned["torch"] == Version("2.13.0")


def test_what_these_need_is_pinned_too(pinned):
    """Torch aside: what it needs depends on the graphics card that it was built for."""
    for name in pinned.keys() - {"torch"}:
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        for wanted in map(Requirement, requires):
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                needed = canonicalize_name(wanted.name)
                assert needed in pinned or needed == "setuptools", f"{name} needs {needed}, which is not pinned"
                if needed in pinned:
                    assert wanted.specifier.contains(pinned[needed], prereleases=True), f"{name} needs {wanted}"


def test_what_is_installed_is_what_is_pinned(pinned):
    for name, version in pinned.items():
        try:
            installed = Version(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
        assert installed.public == version.public, f"{name} {installed} is installed, {version} is pinned"


def test_conda_installs_the_same(asked):
    told = yaml.safe_load(text("environment.yml"))
    plain = [item for item in told["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in told["dependencies"] if isinstance(item, dict)]
    assert told["name"] == asked["name"]
    assert pip == ["-r requirements.lock", "-e ."]
    (python,) = [item.split("=")[1] for item in plain if re.match("python=", item)]
    assert SpecifierSet(asked["requires-python"]).contains(python)
    assert {"pip", "make"} <= set(plain)


def test_make_refuses_the_pythons_that_pyproject_refuses(asked):
    least = re.fullmatch(r">=(\d+)\.(\d+)", asked["requires-python"])
    assert f"sys.version_info < ({least[1]}, {least[2]})" in text("Makefile")


def test_make_installs_what_is_pinned():
    assert "pip install --disable-pip-version-check -r requirements.lock" in text("Makefile")


def test_the_ci_runs_what_the_readme_says():
    assert os.access(PROJECT / ".ci" / "run", os.X_OK)
    commands = [line for line in text(".ci/run").splitlines() if line and not line.startswith("#")]
    assert commands[-2:] == ["make test", "make test-anywhere-short"]
    assert commands[0] == "set -euo pipefail"
    for command in ("make report", "make test"):
        assert re.search(rf"^{command}\b", text("README.md"), re.M), f"README.md does not say `{command}`"


TARGETS = re.findall(r"^([a-z-]+):", text("Makefile"), re.M)


def test_what_the_readme_tells_you_to_make_can_be_made():
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text("README.md"), re.M))
    assert {"report", "test"} <= named <= set(TARGETS)


TRACES = {
    "a path of the machine it was written on": r"(?<![\w.])/(?:work|opt|root|mnt|srv|Users)/\w",
    "a package index": r"(?:find|extra|index)-(?:links|index|url)\b|/simple\b|PIP_[A-Z]",
    "a build of one machine": r"\+(?:cpu|cu\d+|rocm)\b",
}
MEANT = {
    "tests/test_profiles.py": ["/mnt/data"],  # where it says the data are, which they are not
    "tests/wheels.py": ["PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"],  # a pip that reaches no index
    "Makefile": ["+cpu"],  # taken out of the lock
}


@pytest.mark.parametrize("what", TRACES)
def test_no_machine_has_left_its_traces(what):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    here = Path(__file__).relative_to(PROJECT).as_posix()  # names what it looks for
    names = [name for name in listed.stdout.split("\0") if name not in ("", here) and (PROJECT / name).is_file()]
    assert "README.md" in names
    found = []
    for name in names:
        try:
            content = text(name)
        except UnicodeDecodeError:
            continue
        for meant in MEANT.get(name, []):
            content = content.replace(meant, "")
        found += [f"{name}: {match[0]}" for match in re.finditer(TRACES[what], content)]
    assert not found


@pytest.mark.parametrize(
    ("what", "trace", "harmless"),
    [
        ("a path of the machine it was written on", "/opt/wheels", "../opt/x and 1/work/2"),
        ("a package index", "find-links", "links to find"),
        ("a build of one machine", "torch==2.13.0+cpu", "a+cpuset"),
    ],
)
def test_traces_would_be_seen(what, trace, harmless):
    assert re.search(TRACES[what], trace)
    assert not re.search(TRACES[what], harmless)
