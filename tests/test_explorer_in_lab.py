"""The explorer where people use it: a real JupyterLab with a real kernel, driven by a real Chromium."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import browser
import nbformat.v4 as book
import numpy as np
import pytest
import soundfile
from conftest import hum
from test_explorer import SITE, made, texts  # noqa: F401

from whisper_sae.experiments import dashboards

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on this machine")]

CELL = """from whisper_sae.experiments import explore
from whisper_sae.profiles import Profile
explore.explore(Profile(**{fields!r}), site={site!r})"""


@contextlib.contextmanager
def lab(folder: Path):
    """A JupyterLab of its own on this machine's own address; gives where it answers."""
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    own = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "spaces")}
    said = folder / "said.txt"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root",
               "--ServerApp.port_retries=0", f"--notebook-dir={folder}",
               "--LabApp.expose_app_in_browser=True"]  # fmt: skip
    with open(said, "w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | own, cwd=folder)
    try:
        for _ in range(600):
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/lab\?token=(\w+)", said.read_text()):
                break
            assert server.poll() is None, said.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{found[1]}/lab/tree/ask.ipynb?token={found[2]}"
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.mark.parametrize("width", [1280, 390])
def test_everything_is_done_in_jupyterlab(made, tmp_path, width):  # noqa: F811
    home = tmp_path / "lab"
    home.mkdir()
    (tmp_path / "chromium").mkdir()
    fields = asdict(made)
    node = book.new_notebook(cells=[book.new_code_cell(CELL.format(fields=fields, site=SITE))])
    node.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (home / "ask.ipynb").write_text(json.dumps(node))
    soundfile.write(home / "mine.wav", hum(np.random.default_rng(0), 150, seconds=1.2), 16_000)
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with lab(home) as address, browser.tab(tmp_path / "chromium", rules) as tab:
        tab.open(address, width)
        run_all(tab)
        searched_and_played(tab)
        tab.picture(tmp_path / f"feature-{width}.png")
        asked_a_sound(tab, home / "mine.wav")
        tab.picture(tmp_path / f"clip-{width}.png")
        changed(tab)
        tab.picture(tmp_path / f"change-{width}.png")
        noted(tab)
        kept = dashboards.notes(made, 0, SITE).notes()
        assert [note.description for note in kept.values()] == ["a <b>hum</b>"]
        tab.run("jupyterapp.serviceManager.sessions.shutdownAll()")
        run_all(tab)
        search(tab, next(iter(kept)), "", "")
        tab.until("document.querySelector('.which .label.note')?.textContent === 'a <b>hum</b>'")


def run_all(tab) -> None:
    """Run the notebook in a fresh kernel, and wait for the explorer."""
    tab.until("window.jupyterapp && jupyterapp.shell.currentWidget?.content?.model && "
              "jupyterapp.shell.currentWidget.sessionContext.isReady", 180)  # fmt: skip
    tab.run("(async () => { const here = jupyterapp.shell.currentWidget.sessionContext; if (!here.session?.kernel) "
            "await here.changeKernel({ name: 'python3' }); })()")  # fmt: skip
    tab.run("jupyterapp.shell.collapseLeft()")
    tab.run("jupyterapp.commands.execute('notebook:run-all-cells').then(() => true, () => true)")
    tab.until("document.querySelector('.whisper-explorer .example img[src]')", 240)


def search(tab, feature: int, low: str, high: str) -> None:
    tab.run("document.querySelector('[data-tab=feature]').click()")
    for name, text in {"feature": str(feature), "low": low, "high": high}.items():
        tab.write(f".whisper-explorer [name={name}]", text)
    tab.press("Enter", 13)
    tab.until(f"document.querySelector('.panel:not([hidden]) h3')?.textContent === 'Feature {feature}'")


def searched_and_played(tab) -> None:
    tab.until("document.querySelectorAll('.whisper-explorer .example').length > 3")
    feature = int(texts(tab, ".whisper-explorer h3")[0].split()[1])
    peaks = [float(value) for value in texts(tab, ".whisper-explorer .example .value")]
    tab.run("document.querySelector('.whisper-explorer .status').textContent = ''")
    middle = (peaks[0] + peaks[-1]) / 2
    search(tab, feature, str(middle), "")
    tab.until("document.querySelector('.whisper-explorer .status').textContent.includes('within the range')")
    shown = [float(value) for value in texts(tab, ".whisper-explorer .example .value")]
    assert 0 < len(shown) < len(peaks) and min(shown) >= middle * 0.99
    assert tab.run("document.querySelectorAll('.whisper-explorer .peaks rect').length") > 1
    assert float(tab.run("document.querySelector('.whisper-explorer').dataset.took")) > 0
    tab.until("document.querySelector('.whisper-explorer .example img[src]')")
    tab.click(".whisper-explorer .example .player button")
    tab.until("Number(document.querySelector('.whisper-explorer .player input').value) > 0.05")
    assert tab.run("document.querySelector('.whisper-explorer .cursor').style.left") != ""


def asked_a_sound(tab, path: Path) -> None:
    tab.run("document.querySelector('[data-tab=clip]').click()")
    tab.choose_file(".whisper-explorer input[type=file]", path)
    tab.until("document.querySelector('.panel:not([hidden]) h3')?.textContent === 'mine.wav'", 120)
    number = texts(tab, ".peak-row .leap")[0]
    tab.run("document.querySelector('.peak-row .leap').click()")
    tab.until(f"document.querySelector('.panel:not([hidden]) h3').textContent === 'Feature {number}'")
    tab.run("document.querySelector('.whisper-explorer .back').click()")
    tab.until("document.querySelector('.panel:not([hidden]) .pair .example img[src]')")


def changed(tab) -> None:
    tab.run("document.querySelector('.peak-row .small').click()")
    tab.until("document.querySelector('.slider')")
    tab.run("document.querySelector('.slider input[type=range]').focus()")
    tab.press("End", 35)
    tab.run("document.querySelector('[aria-label=\"Change features\"] .main').click()")
    tab.until("document.querySelectorAll('.texts dd').length === 3", 120)
    assert len(texts(tab, ".both .example")) == 2


def noted(tab) -> None:
    tab.run("document.querySelector('[data-tab=feature]').click(); document.querySelector('.note').open = true")
    tab.write(".note-form [name=description]", "a <b>hum</b>")
    tab.run("document.querySelector('.note-form .main').click()")
    tab.until("document.querySelector('.note-form .soft').textContent.startsWith('kept on')")
