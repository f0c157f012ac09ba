"""Notebooks 0 to 7 on corpora that cannot answer most of their questions: each runs to its end and says so.

Slow: a minute a corpus. The demo's Whisper hears them, since it has a tokenizer; its dictionaries are hardly trained.
"""

import json
import re
from pathlib import Path

import bs4
import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import hum

from whisper_sae import profiles
from whisper_sae.report import runner

SITE = "encoder.2.resid"

pytestmark = pytest.mark.slow


def without(*columns):
    """Takes columns of the corpus's table away."""

    def prepare(folder: Path) -> None:
        table = pd.read_csv(folder / "metadata.csv", dtype=str).drop(columns=list(columns))
        table.to_csv(folder / "metadata.csv", index=False)

    return prepare


def bare(folder: Path) -> None:
    (folder / "metadata.csv").unlink()


def digital_silence(folder: Path) -> None:
    bare(folder)
    for path in folder.glob("audio/*.flac"):
        soundfile.write(path, np.zeros(32_000, np.float32), 16_000)


def one_sentence(folder: Path) -> None:
    table = pd.read_csv(folder / "metadata.csv", dtype=str).assign(text="put six toys")
    table.to_csv(folder / "metadata.csv", index=False)


def short(folder: Path) -> None:
    """Clips of 60 ms: three frames each."""
    rng = np.random.default_rng(0)
    for path in folder.glob("audio/*.flac"):
        soundfile.write(path, hum(rng, 200, seconds=0.06), 16_000)


KINDS = {
    "digital silence": (digital_silence, dict(voices=3, clips=4)),
    "nothing but files": (bare, dict(voices=6, clips=5)),
    "one sentence": (one_sentence, dict(voices=8, clips=3)),
    "one speaker": (without("split"), dict(voices=1, clips=12)),
    "two speakers": (without("split"), dict(voices=2, clips=6)),
    "three speakers": (without("split"), dict(voices=3, clips=4)),
    "no speakers": (without("speaker", "gender", "split"), dict(voices=4, clips=4)),
    "no gender": (without("gender"), dict(voices=7, clips=3)),
    "no words": (without("text"), dict(voices=7, clips=3)),
    "three clips": (without("split"), dict(voices=3, clips=1)),
    "very short clips": (short, dict(voices=6, clips=4)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_notebook_runs_to_its_end(kind, corpus, run_for, data, tmp_path):
    prepare, size = KINDS[kind]
    folder = corpus(**size)
    prepare(folder)
    run = run_for(
        profiles.DEMO / "whisper", folder, sites=(SITE, "encoder.1.resid"), focus=SITE, tokens=4_000,
        batch_windows=8, expansion=2,
    )  # fmt: skip
    (tmp_path / "odd.toml").write_text(
        "\n".join(f"{name} = {json.dumps(getattr(run, name))}" for name in profiles.FIELDS), encoding="utf-8"
    )
    plan = runner.plan(str(tmp_path / "odd.toml"), range(8))
    rows = runner.run(plan, jobs=1)
    assert not {name: row["error"] for name, row in rows.items() if row["status"] != "done"}
    assert all(len(row["headline"]) > 10 for row in rows.values()), {n: row["headline"] for n, row in rows.items()}
    for name in rows:
        page = bs4.BeautifulSoup((plan.where / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
        for part in page.find_all(["script", "style", "pre"]):
            part.decompose()
        assert not re.search(r"\bnan\b|\bNaN\b|RuntimeWarning", page.get_text(" ")), name
