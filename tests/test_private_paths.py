"""What leaves the machine: no path of it, and nothing that a spreadsheet would run."""

import base64
import io
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae import private_paths
from whisper_sae.report import results
from whisper_sae.viz import display

PROJECT, HOME = str(private_paths.PROJECT), str(Path.home())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"{PROJECT}/data/demo/a.wav: truncated", "./data/demo/a.wav: truncated"),
        (f'File "{PROJECT}/whisper_sae/sae.py"', 'File "./whisper_sae/sae.py"'),
        (f"{PROJECT}-old/a", f"{PROJECT}-old/a".replace(HOME, "~")),
        ("/elsewhere/x/corpora/emo: no rows; see /elsewhere/x/corpora/emo/a.wav", "…/emo: no rows; see …/emo/a.wav"),
        ("/elsewhere/x/corpora2/emo", "/elsewhere/x/corpora2/emo"),
        (f"({HOME}/models/m)", "(~/models/m)"),
        ("https://example.org/elsewhere/x/corpora/emo", "https://example.org/elsewhere/x/corpora/emo"),
    ],
)
def test_places_of_this_machine_are_hidden(text, shown):
    assert private_paths.hidden(text, ("/elsewhere/x/corpora/emo", "openai/whisper-tiny")) == shown


@given(st.binary(min_size=100, max_size=400), st.integers(0, 99))
def test_pictures_stay_as_they_are(data, at):
    text = base64.b64encode(data).decode()
    for folder in (HOME, PROJECT, "/elsewhere/x/corpora"):
        inside = text[: at + 1] + folder + text[at + 1 :]
        assert private_paths.hidden(inside, ("/elsewhere/x/corpora/emo",)) == inside


def test_where_data_and_reports_lie_is_hidden(monkeypatch, tmp_path):
    monkeypatch.setenv("WHISPER_SAE_DATA", str(tmp_path / "d"))
    monkeypatch.setenv("WHISPER_SAE_REPORTS", str(tmp_path / "r"))
    assert private_paths.hidden(f"{tmp_path}/d/steps, {tmp_path}/r/demo") == "data/steps, reports/demo"


@pytest.mark.parametrize("cell", ['=HYPERLINK("x")', "@SUM(A1)", "-1+1|cmd", "+cmd|x", "\t=1+1", "\r=1+1"])
def test_what_a_spreadsheet_would_run_is_quoted(cell):
    table = pd.DataFrame({"word": [cell, "plain"], cell: [1.5, -2.0]}, index=pd.Index([cell, "b"], name="who"))
    again = pd.read_csv(io.StringIO(results.as_csv(table, index=True)), index_col=0)
    cell = f"'{cell}".replace("\r", " ")
    assert again.word.tolist() == [cell, "plain"] and again.index[0] == again.columns[1] == cell
    assert again[cell].tolist() == [1.5, -2.0]


@pytest.mark.parametrize("cell", ["-1.5", "+3", "-inf", "-", "@", "a=b", "ɪ"])
def test_what_is_no_formula_stays(cell):
    assert results.as_csv(pd.DataFrame({"x": [cell]})).splitlines()[1].strip('"') == cell


@pytest.mark.parametrize("word", ["US$_$", "$_{$", "\\frac", "$x$", "a^b_c"])
def test_a_dollar_in_a_word_is_a_dollar(word, capsys):
    display.use_style()
    figure, (axes, other) = plt.subplots(1, 2)
    axes.set(title=word, xlabel=word, yscale="log", ylim=(1, 1e4))
    axes.set_xticks([0], [word])
    axes.text(0, 1, word)
    other.bar([word, "other"], [1, 2], label=word)
    other.legend()
    display.show(figure, alt=word, caption=word)
    labels = [text for text in axes.get_yticklabels() if text.get_text()]
    assert labels and all(text.get_parse_math() for text in labels if "mathdefault" in text.get_text())
    assert not any(
        text.get_parse_math() for text in (axes.title, axes.get_xticklabels()[0], other.get_xticklabels()[0])
    )


def test_no_path_of_this_machine_is_in_the_report_that_git_holds():
    for path in (private_paths.PROJECT / "notebooks").glob("*.ipynb"):
        assert os.sep + "work" + os.sep not in path.read_text(encoding="utf-8")
