"""Notes on features come back as they were put, stay apart, and a file that is wrong says where."""

import io
import json
import multiprocessing
import re

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import example, given
from hypothesis import strategies as st
from mistune import create_markdown

from whisper_sae.explorer import annotations
from whisper_sae.explorer.annotations import CATEGORIES, Labels, Note, draft

KEY, SITE = "166e5d6f8fbb", "encoder.2.resid"
NASTY = (
    '"quoted" \\ back\nnew\r\nline\ttab \x00\x7f | <script>alert("x")</script> [a](b) *b* ~~c~~ `d` $e$ ʃ 語 🦜 \u2028'
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.just(NASTY)
NOTES = st.builds(
    Note, st.integers(0, 10**9), st.sampled_from(CATEGORIES), TEXTS, st.none() | st.floats(0, 1), TEXTS, TEXTS,
    st.just("") | st.dates().map(str) | st.datetimes().map(lambda moment: moment.isoformat()),
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("labels")


@given(st.lists(NOTES, max_size=4, unique_by=lambda note: note.feature))
@example([Note(30, "phone", NASTY, 0.5, NASTY, NASTY, "2026-03-01")])
def test_what_was_put_comes_back(place, notes):
    kept = Labels(place, KEY, SITE)
    kept.path.unlink(missing_ok=True)
    for note in notes:
        kept.put(note)
    assert Labels(place, KEY, SITE).notes() == {note.feature: note for note in notes}
    assert list(kept.notes()) == sorted(note.feature for note in notes)


@given(st.lists(NOTES, min_size=1, max_size=3, unique_by=lambda note: note.feature))
@example([Note(3, "other", NASTY, None, NASTY, NASTY, "")])
def test_exports_say_the_same(place, notes):
    kept = Labels(place, KEY, SITE)
    kept.path.unlink(missing_ok=True)
    for note in notes:
        kept.put(note)
    right = [kept.notes()[number] for number in sorted(kept.notes())]
    kept.export(place / "out.json")
    told = json.loads((place / "out.json").read_text(encoding="utf-8"))
    assert [Note(**{name: row[name] for name in annotations.FIELDS}) for row in told] == right
    assert {(row["dictionary"], row["site"]) for row in told} == {(KEY, SITE)}
    kept.export(place / "out.csv")
    content = (place / "out.csv").read_bytes().decode("utf-8")
    if "\0" not in content:  # which pandas does not read
        read = pd.read_csv(io.StringIO(content, newline=""), keep_default_na=False, dtype=str, lineterminator="\n")
        for name in ("description", "evidence", "who"):
            told = [(cell, getattr(note, name)) for cell, note in zip(read[name], right, strict=True)]
            assert all(cell in (text, f"'{text}") for cell, text in told), "as it is, or harmless for a spreadsheet"
    kept.export(place / "out.md")
    markdown = (place / "out.md").read_text(encoding="utf-8")
    assert len(markdown.strip("\n").split("\n")) == 2 + len(notes), "a line a note"


def test_markdown_shows_what_was_written(place):
    kept = Labels(place, "abc", SITE)
    words = [
        NASTY.replace("\0", ""),
        "a | b",
        "<b>bold</b> &amp; &lt;",
        "http://example.org a@b.org",
        "# - 1. > x",
        "\\|",
    ]
    for number, text in enumerate(words):
        kept.put(Note(number, "sound", text, evidence=text))
    kept.export(place / "shown.md")
    told = (place / "shown.md").read_text(encoding="utf-8")
    soup = BeautifulSoup(create_markdown(escape=False, plugins=["table", "strikethrough", "url"])(told), "html.parser")
    assert not soup.find(["script", "a", "b", "em", "strong", "code", "del"])
    for line in soup.find_all("br"):
        line.replace_with("\n")
    rows = [[cell.get_text() for cell in row.find_all("td")] for row in soup.find_all("tr")[1:]]
    said = [" ".join(re.split(r"\s+", text.strip())) for text in words]
    assert [" ".join(row[4].split()) for row in rows] == said == [" ".join(row[6].split()) for row in rows]
    with pytest.raises(ValueError, match=r"out\.xlsx: the name must end in \.csv, \.json, \.md"):
        kept.export(place / "out.xlsx")


def test_dictionaries_and_sites_never_mix(tmp_path):
    first, retrained, elsewhere = (
        Labels(tmp_path, *which) for which in [(KEY, SITE), ("0dec9f12af1c", SITE), (KEY, "encoder.2.resid2")]
    )
    first.put(Note(30, "phone", "s"))
    assert retrained.notes() == elsewhere.notes() == {} and retrained.others() == [first.path]
    elsewhere.put(Note(30, "word", "yes"))
    assert first.notes()[30].description == "s" and first.others() == [] and elsewhere.others() == []
    retrained.path.write_bytes(first.path.read_bytes())  # as a person may who wants to keep them
    with pytest.raises(ValueError, match=r"resid-0dec9f12af1c\.toml: dictionary: these notes are not of 0dec9f12af1c"):
        retrained.notes()
    with pytest.raises(ValueError, match=r"site: '\.\./x' cannot name a file"):
        Labels(tmp_path, KEY, "../x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[feature.3]\ncategory = 'phoneme'", "feature.3: category: 'phoneme' is not one of phone, word"),
        ("[feature.3]\nconfidence = 1.5", "feature.3: confidence: must be a number from 0 to 1, got 1.5"),
        ("[feature.3]\nconfidence = nan", "feature.3: confidence: must be a number from 0 to 1, got nan"),
        ("[feature.3]\nconfidence = true", "feature.3: confidence: must be"),
        ("[feature.3]\ndescription = 3", "feature.3: description: must be text, got 3"),
        ("[feature.3]\nwhen = 'soon'", "feature.3: when: must be a date like 2026-03-01, got 'soon'"),
        ("[feature.3]\ncolour = 'red'", "feature.3: unknown field 'colour'; known: category, description"),
        ("[feature.three]\nwho = 'x'", "feature: expected tables such as [feature.30], got 'three'"),
        ("feature = 3", "feature: expected tables such as [feature.30]"),
        ("[features.3]\nwho = 'x'", "unknown field 'features'; known: dictionary, site, feature"),
        ("[feature.3]\nwho = \"a\nb\"", "not valid TOML: "),
        ("[feature.3]\n[feature.3]", "not valid TOML: "),
        ("[feature.3]\nwho = 'caf\xe9'", "not valid TOML: "),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_says_where(tmp_path, text, says):
    kept = Labels(tmp_path, KEY, SITE)
    head = f'dictionary = "{KEY}"\nsite = "{SITE}"\n'
    before = (head + text).encode("latin-1")
    kept.path.write_bytes(before)
    for ask in (kept.notes, kept.table, lambda: kept.put(Note(1)), lambda: kept.remove(3)):
        with pytest.raises(ValueError) as raised:
            ask()
        assert str(raised.value).startswith(f"{kept.path}: {says}") and "\n" not in str(raised.value)
    assert kept.path.read_bytes() == before, "what cannot be understood is not written over"


def test_a_person_may_edit_the_file(tmp_path):
    kept = Labels(tmp_path, KEY, SITE)
    kept.put(Note(7, "phone", "s", 0.5))
    text = kept.path.read_text(encoding="utf-8").replace("confidence = 0.5", "confidence = 1\nwhen = 2026-03-01 # day")
    kept.path.write_text(text + "[feature.2]\ndescription = '''two\nlines'''\n", encoding="utf-8")
    assert kept.notes() == {2: Note(2, description="two\nlines"), 7: Note(7, "phone", "s", 1, when="2026-03-01")}
    kept.remove(2)
    assert list(kept.notes()) == [7] and kept.table().confidence.tolist() == [1.0]
    with pytest.raises(KeyError):
        kept.remove(2)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_a_note_that_cannot_be_is_refused():
    for wrong in ({"feature": -1}, {"feature": 1.0}, {"feature": True}, {"description": "\ud800"}, {"who": None}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: must be"):
            Note(**{"feature": 1} | wrong)


def _put_ten(folder, first):
    for number in range(first, first + 10):
        Labels(folder, KEY, SITE).put(Note(number))


def test_two_who_write_at_once_lose_nothing(tmp_path):
    both = [multiprocessing.get_context("spawn").Process(target=_put_ten, args=(tmp_path, n)) for n in (0, 100)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert list(Labels(tmp_path, KEY, SITE).notes()) == [*range(10), *range(100, 110)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (dict(phone="s", f1=0.81, chance=0.12, stage="onset"), "likely /s/, onset, F1 0.81, chance 0.12"),
        (dict(phone="s", f1=0.81), "likely /s/, F1 0.81"),
        (dict(phone="s", f1=0.31, chance=0.12, stage="onset"), "unclear"),
        (dict(phone="s", f1=float("nan"), chance=0.12), "unclear"),
        (dict(phone="s", f1=0.8, chance=0.1, flag="loudness"),
         "likely /s/, F1 0.80, chance 0.10, but goes with loudness"),
        (dict(phone="s", f1=0.2, chance=0.1, flag="loudness"), "goes with loudness"),
        (dict(phone="s", f1=0.2, chance=0.1, word="yes"), "often in “yes”"),
        (dict(phone=float("nan"), f1=None, chance=None, stage=np.nan, flag=None, word=" "), "unclear"),
        ({}, "unclear"),
    ],
)  # fmt: skip
def test_a_draft_says_what_scores_suggest(row, said):
    assert draft(row) == said
    assert draft(pd.Series(row, dtype=object)) == said


def test_a_draft_asks_for_more_than_chance():
    row = dict(phone="s", f1=0.5, chance=0.4)
    assert draft(row) == "unclear" and draft(row, above=0.05) == "likely /s/, F1 0.50, chance 0.40"
