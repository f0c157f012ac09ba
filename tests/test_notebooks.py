"""The notebooks by themselves: papermill from any folder, what a missing result says, outputs compared."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

from whisper_sae import cache

PROJECT = Path(__file__).resolve().parents[1]
NOTEBOOKS = PROJECT / "notebooks"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder that is not the project's, with reports of its own; results are the project's, and are made once."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return folder, {**os.environ, "WHISPER_SAE_REPORTS": str(folder / "reports")}


def papermill(elsewhere, name, *options, profile="demo"):
    folder, environment = elsewhere
    command = [sys.executable, "-m", "papermill", str(NOTEBOOKS / name), "out.ipynb", "-p", "profile", profile]
    return subprocess.run([*command, *options], cwd=folder, env=environment, capture_output=True, text=True)


def nbval(elsewhere, *notebooks):
    folder, environment = elsewhere
    sanitize = PROJECT / "tests" / "nbval_sanitize.cfg"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--nbval-lax"]
    return subprocess.run(
        [*command, f"--nbval-sanitize-with={sanitize}", *map(str, notebooks)],
        cwd=folder,
        env={name: value for name, value in environment.items() if name != "PYTEST_ADDOPTS"},
        capture_output=True,
        text=True,
    )


def test_02_says_what_to_run_first(data):
    """Its cells, one after the other, where nothing has been made."""
    says = r"'activations' has not been made .* run first: python -m whisper_sae demo 01"
    space = {}
    with pytest.raises(cache.NotMade, match=says):
        for cell in jupytext.read(NOTEBOOKS / "02_training.py").cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, "02_training.py", "exec"), space)


ALL = sorted(path.name for path in NOTEBOOKS.glob("[0-9]*.ipynb"))


def check_run(elsewhere, name, profile, done):
    assert done.returncode == 0, done.stderr[-2000:]
    book = nbformat.read(elsewhere[0] / "out.ipynb", as_version=4)
    assert sum("<figure" in str(cell.get("outputs")) for cell in book.cells) >= 3
    assert (elsewhere[0] / "reports" / profile / "findings" / f"{Path(name).stem}.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_papermill_runs_them_from_any_folder(elsewhere, name):
    check_run(elsewhere, name, "demo", papermill(elsewhere, name, "-p", "seed", "0"))


@pytest.mark.slow
def test_papermill_runs_the_first_from_any_folder(elsewhere):
    """On a few of the demo's clips, by a profile of that folder's own, with results of their own."""
    folder, environment = elsewhere
    (folder / "few.toml").write_text('base = "demo"\nclips = 16\nsites = ["encoder.2.resid"]\n')
    alone = folder, {**environment, "WHISPER_SAE_DATA": str(folder / "few")}
    done = papermill(alone, ALL[0], "-p", "seed", "1", profile="few.toml")
    check_run(alone, ALL[0], "few", done)
    assert (folder / "few" / "steps" / "activations").is_dir()


def test_one_altered_number_is_noticed(elsewhere):
    """Of what a notebook says and has checked, said again by one cell: as it is, and with one digit changed."""
    folder, _ = elsewhere
    book = nbformat.read(NOTEBOOKS / "01_extraction.ipynb", as_version=4)
    checked = next(cell for cell in book.cells if "nbval-check-output" in cell.metadata.get("tags", []))
    said = checked.outputs[0].text
    digit = re.search(r"\d", said)[0]
    book.cells, checked.source = [checked], f"print({said!r}, end='')"
    nbformat.write(book, folder / "same.ipynb")
    checked.outputs[0].text = said.replace(digit, str((int(digit) + 1) % 10), 1)
    nbformat.write(book, folder / "altered.ipynb")
    done = nbval(elsewhere, folder / "same.ipynb", folder / "altered.ipynb")
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout, done.stdout[-2000:]
    assert "altered.ipynb::Cell 0" in done.stdout and "same.ipynb::Cell 0" not in done.stdout
