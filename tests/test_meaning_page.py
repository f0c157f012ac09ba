"""Notebook 6 on corpora that leave questions out: it runs to the end and says what it could not ask."""

from pathlib import Path

import jupytext
import numpy as np
import pandas as pd
import pytest
import soundfile
from matplotlib import pyplot as plt

from whisper_sae import cache, profiles
from whisper_sae.experiments import pipeline, sae_comparison
from whisper_sae.report import results
from whisper_sae.viz import display

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "06_meaning.py"
SITE = "encoder.1.resid"


def tell_phones(folder: Path, clips: str = "*", labels=("s", "i", "n", "ɑ"), seed: int = 0, alike: bool = False):
    """Phones of 100 to 200 ms over clips of a corpus: drawn for each clip, or with `alike` the same in all of them."""
    rows, rng = [], np.random.default_rng(seed)
    for path in sorted(folder.glob(f"audio/{clips}.flac")):
        rng = np.random.default_rng(seed) if alike else rng
        end, start = 1000 * soundfile.info(path).duration, 0.0
        while start < end - 100:
            stop = min(end, start + rng.uniform(100, 200))
            rows.append((f"audio/{path.name}", start, stop, labels[rng.integers(len(labels))]))
            start = stop
    pd.DataFrame(rows, columns=["file_name", "start_ms", "end_ms", "phone"]).to_csv(folder / "phones.csv", index=False)


def told(folder: Path, **columns) -> None:
    """Write other values into columns of a corpus's table, or leave a column out (None)."""
    table = pd.read_csv(folder / "metadata.csv")
    for name, value in columns.items():
        table = table.drop(columns=name) if value is None else table.assign(**{name: value})
    table.to_csv(folder / "metadata.csv", index=False)


@pytest.fixture
def page(small_whisper, corpus, run_for, data, monkeypatch):
    """Runs the notebook on a corpus that a function prepares: what it says, and what it saved."""

    def run_it(prepare, **how) -> tuple[str, dict]:
        folder = corpus(**{"voices": 8, "clips": 3} | how)
        prepare(folder)
        run = run_for(small_whisper, folder, tokens=2_000)
        for recipe in (pipeline.clips(run, 0), pipeline.activations(run, 0), sae_comparison.dictionary(run, 0, SITE)):
            cache.make(recipe)
        monkeypatch.setattr(profiles, "choose", lambda name: run)
        said, saved = [], {}
        monkeypatch.setattr(display, "say", said.append)
        monkeypatch.setattr(display, "display", lambda *shown: None)
        monkeypatch.setattr(results, "save", lambda *names, **what: saved.update(what))
        space = {"display": lambda *shown: None}
        for cell in jupytext.read(NOTEBOOK).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, str(NOTEBOOK), "exec"), space)
        plt.close("all")
        return " ".join(said), saved

    return run_it


@pytest.mark.slow
def test_without_phones_it_asks_the_transcripts(page):
    said, saved = page(lambda folder: None)
    assert "No corpus of this profile has times of phones" in said
    assert "words" in saved["headline"] and saved["tables"]["features"].empty
    assert "phones" not in saved["tables"]["families"].family.tolist()


@pytest.mark.slow
def test_phones_of_one_speaker_are_scored_on_other_clips(page):
    said, saved = page(lambda folder: tell_phones(folder, "v00_*"), clips=6)
    assert "clips on which nothing was chosen" in said
    assert saved["tables"]["detectors"].low.isna().all(), "one speaker has no interval"


@pytest.mark.slow
def test_without_phones_and_words_it_asks_the_sound(page):
    said, saved = page(lambda folder: told(folder, text=""))
    assert "No corpus of this profile has transcripts" in said and "Nothing could be asked" in saved["headline"]
    assert saved["tables"]["families"].family.tolist() == ["flags"]


@pytest.mark.slow
def test_without_speakers_every_clip_is_one(page):
    said, saved = page(lambda folder: (told(folder, speaker=None, gender=None, split=None), tell_phones(folder)))
    assert "speakers on which nothing was chosen" in said and saved["tables"]["families"].family[0] == "phones"


@pytest.mark.slow
def test_where_everyone_reads_one_sentence(page):
    """The sentence cannot be held out, and no word or letter can be asked about."""
    said, saved = page(lambda folder: (told(folder, text="She had it."), tell_phones(folder, alike=True)))
    clips = saved["tables"]["families"].set_index("family").loc["phones", "found"]
    assert clips == 0 and "say a sentence that was chosen on" in said
    assert "Fewer than two words" in said and "Fewer than two characters" in said
