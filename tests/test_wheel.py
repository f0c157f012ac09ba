"""The wheel works without the checkout: console command, notebooks, demo data, templates, explorer, dashboard."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


def run(*command, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with the wheel; what it depends on is that of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=PROJECT, text=True).split("\0"):
        if name and not name.startswith(("tests/", "benchmarks/", "reports/")) and (PROJECT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(PROJECT / name, source / name) if PROJECT.stat().st_dev == folder.stat().st_dev else (
                source / name
            ).write_bytes((PROJECT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source)
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", next(folder.glob("*.whl")))
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def elsewhere(tmp_path) -> dict:
    """The environment of a command that knows nothing of the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WHISPER_SAE", "PYTHON"))}
    return {"cwd": tmp_path, "env": kept}


def test_the_package_and_all_that_it_reads_are_those_of_the_wheel(installed, tmp_path):
    code = """
import whisper_sae
from whisper_sae import cache, private_paths, profiles
from whisper_sae.data import corpora
from whisper_sae.model import text
from whisper_sae.report import runner, template
assert private_paths.INSTALLED and len(text.english_spellings()) > 1000 and corpora.LIBRISPEECH.exists()
assert (template.TEMPLATE / "layout.html.j2").exists() and len(list(runner.NOTEBOOKS.glob("[0-9]*.py"))) >= 10
profile = profiles.choose("demo")
print(whisper_sae.__file__, profile.model, profile.corpus, cache.root())
"""
    said = run(installed, "-c", code, **elsewhere(tmp_path)).split()
    assert str(PROJECT) not in " ".join(said) and said[-1] == str(tmp_path / "data")
    assert "--jobs" in run(installed.with_name("whisper-sae"), "--help", **elsewhere(tmp_path))


@pytest.mark.slow
def test_a_notebook_the_explorer_and_a_dashboard_work_from_the_wheel(installed, tmp_path):
    print(run(installed.with_name("whisper-sae"), "demo", "00", "01", "02", **elsewhere(tmp_path)))
    assert (tmp_path / "reports" / "demo" / "index.html").exists()
    code = """
from whisper_sae import cache, profiles
from whisper_sae.experiments import dashboards, explore, feature_index
profile = profiles.choose("demo")
cache.make(feature_index.codes(profile, 0, profile.focus))
assert "dictionary" in explore.explore(profile).asked
print(dashboards.page(profile, 0, profile.focus, most=4).path)
"""
    page = Path(run(installed, "-c", code, **elsewhere(tmp_path)).split()[-1])
    assert page.is_relative_to(tmp_path) and page.stat().st_size > 10_000
