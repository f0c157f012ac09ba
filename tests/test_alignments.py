"""Phones and words are read from TextGrids, CTM and tables alike, beside their sounds, and what is bad is named."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
from damage import damaged
from hypothesis import given
from hypothesis import strategies as st

from whisper_sae import profiles
from whisper_sae.data import alignments, corpora, frame_alignment, tables

PHONES = [(0, 0.2, ""), (0.2, 0.4, "s"), (0.4, 0.6, '"a'), (0.6, 1.0, "ɪ")]
WORDS = [(0, 0.2, ""), (0.2, 1.0, "sea")]
TIERS = [("TextTier", "tones", [(0.5, "H*")]), ("IntervalTier", "words", WORDS), ("IntervalTier", "phones", PHONES)]


def long(tiers=TIERS, end="1.0") -> str:
    """As Praat writes a text file."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0 ", f"xmax = {end} "]
    lines += ["tiers? <exists> ", f"size = {len(tiers)} ", "item []: "]
    for place, (sort, name, rows) in enumerate(tiers, 1):
        points = sort == "TextTier"
        what, fields = ("points", ("number", "mark")) if points else ("intervals", ("xmin", "xmax", "text"))
        lines += [f"    item [{place}]:", f'        class = "{sort}" ', f"        name = {quoted(name)} "]
        lines += ["        xmin = 0 ", f"        xmax = {end} ", f"        {what}: size = {len(rows)} "]
        for number, row in enumerate(rows, 1):
            values = [*map(str, row[:-1]), quoted(row[-1])]
            lines += [f"        {what} [{number}]:"]
            lines += [f"            {field} = {value} " for field, value in zip(fields, values, strict=True)]
    return "\n".join(lines) + "\n"


def short(tiers=TIERS, end="1.0") -> str:
    """As Praat writes a short text file."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", end, "<exists>", str(len(tiers))]
    for sort, name, rows in tiers:
        lines += [f'"{sort}"', quoted(name), "0", end, str(len(rows))]
        lines += [str(value) for row in rows for value in (*row[:-1], quoted(row[-1]))]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def encoded(text: str, encoding: str) -> bytes:
    marks = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
    return marks.get(encoding, b"") + text.encode(encoding)


@pytest.fixture
def folder(tmp_path):
    """A corpus of empty sound files: `folder("audio/a.wav", …)`; nothing here decodes them."""

    def write(*names: str):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return write


# ------------------------------------------------------------------------------------------------ TextGrid


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("write", [long, short])
def test_a_textgrid_beside_a_sound_is_read(folder, write, ends, encoding):
    place = folder("audio/a.wav")
    (place / "audio/a.TextGrid").write_bytes(encoded(write().replace("\n", ends), encoding))
    found = alignments.read(place)
    assert list(found) == ["path", "start", "end", "phone"]
    assert found.phone.tolist() == ["s", '"a', "ɪ"], "an empty interval tells nothing"
    np.testing.assert_allclose(found[["start", "end"]], [[0.2, 0.4], [0.4, 0.6], [0.6, 1.0]])
    assert set(found.path) == {str(place / "audio/a.wav")}
    assert alignments.read(place, "words").word.tolist() == ["sea"]
    assert frame_alignment.read(place).equals(found) and frame_alignment.words(place).word.tolist() == ["sea"]


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(
    ['"', '""', "item [2]: xmin = 3", '"IntervalTier"', "! no remark", "<exists>", "1.5", "text = ", 'a "b" c']
)


@given(st.lists(st.tuples(TEXTS, st.integers(1, 5000)), max_size=8), st.sampled_from([long, short]), st.booleans())
def test_any_text_in_a_textgrid_is_read_as_it_was_written(tmp_path_factory, cells, write, points):
    edges = np.cumsum([0, *(length for _, length in cells)])
    told = list(zip(edges[:-1], edges[1:], [text for text, _ in cells], strict=True))
    rows = [(f"{a}e-3", f"{b}e-3", text) for a, b, text in told]
    marks = [("TextTier", "marks", [(0.5, text) for text, _ in cells])] if points else []
    path = tmp_path_factory.mktemp("grid") / "a.TextGrid"
    path.write_text(write([*marks, ("IntervalTier", 'the "phones"', rows)], "6.0"), encoding="utf-8", newline="")
    ((name, found),) = alignments.grid(path).items()
    assert name == 'the "phones"' and [row[2] for row in found] == [" ".join(text.split()) for *_, text in told]
    np.testing.assert_allclose([time for row in found for time in row[:2]], [t / 1e3 for row in told for t in row[:2]])


def test_a_label_of_two_lines_is_one(folder):
    place = folder("a.wav")
    (place / "a.TextGrid").write_text(long([("IntervalTier", "phones", [(0, 1, "a\n b")])]))
    assert alignments.read(place).phone.tolist() == ["a b"]


def test_remarks_in_a_textgrid_are_no_data(folder):
    place = folder("a.wav")
    (place / "a.TextGrid").write_text(replaced("size = 3", 'size = 3 ! not 4 of "them"'))
    assert alignments.read(place).phone.tolist() == ["s", '"a', "ɪ"]


def test_a_textgrid_without_tiers_tells_nothing(folder):
    place = folder("a.wav")
    (place / "a.TextGrid").write_text('"ooTextFile"\n"TextGrid"\n0 1 <absent>\n')
    assert alignments.read(place).empty
    (place / "a.TextGrid").write_text(long([("IntervalTier", "phones", [])]))
    assert alignments.read(place).empty


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(("Word", "Phoneme", "Phonetic"), "Phonetic"), (("s1 - words", "s1 - phones"), "s1 - phones"), (("tones",), None)],
)
def test_tiers_of_phones_are_known_by_name(folder, names, chosen):
    place = folder("a.wav")
    (place / "a.TextGrid").write_text(long([("IntervalTier", name, [(0, 1, name)]) for name in names]))
    assert alignments.read(place).phone.tolist() == ([chosen] if chosen else [])


EDGES = [(0, 0.3), (0.3, 0.7), (0.7, 1.0)]


@pytest.mark.parametrize(
    ("tiers", "words"),
    [
        ({"Word": ["", "F", "C"], "Text": ["", "a", "cat"]}, ["a", "cat"]),  # emuR: classes of words, and the words
        ({"words": ["", "a", "cat"], "text": ["", "a", "cat"]}, ["a", "cat"]),
        ({"words": ["我", "是", "人"], "Text": [(0, 1, "我是人")]}, ["我", "是", "人"]),  # other edges: an utterance
        ({"Text": ["", "a", "cat"]}, ["a", "cat"]),
    ],
)
@pytest.mark.parametrize("kind", ["TextGrid", "csv"])
def test_the_tier_of_words_is_the_one_that_spells_them(folder, tiers, words, kind):
    place = folder("a.wav")
    rows = {
        name: [one if isinstance(one, tuple) else (*edge, one) for one, edge in zip(texts, EDGES, strict=False)]
        for name, texts in tiers.items()
    }
    if kind == "csv":
        table = [("a.wav", name, *row) for name, part in rows.items() for row in part if row[2]]
        columns = ["file_name", "tier", "start_s", "end_s", "label"]
        pd.DataFrame(table, columns=columns).to_csv(place / "words.csv", index=False)
    else:
        (place / "a.TextGrid").write_text(long([("IntervalTier", *each) for each in rows.items()]), encoding="utf-8")
    assert alignments.read(place, "words").word.tolist() == words


def test_another_tier_can_be_named(folder):
    place = folder("a.wav")
    (place / "a.TextGrid").write_text(long([("IntervalTier", "Ton - satz", [(0, 1, "up")]), *TIERS]))
    assert alignments.read(place, tier="ton - Satz").phone.tolist() == ["up"]
    with pytest.raises(alignments.BadAlignment, match=r"a\.TextGrid: tier: no 'fon'; it has Ton - satz, words, phones"):
        alignments.read(place, tier="fon")


def replaced(old, new, write=long):
    return write().replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "File type: not a text file of Praat"),
        ("hello\n", "File type: not a text file of Praat"),
        ("ooBinaryFile\x08TextGrid", "File type: not a text file of Praat"),
        (replaced("TextGrid", "Sound"), "Object class: 'Sound' is not a TextGrid"),
        (replaced("xmin = 0.2", "xmin = soon"), "tier 'words': 2: xmax: a number is needed, there is a text, 'sea'"),
        (replaced("xmin = 0.2 \n            xmax = 1.0", "xmin = x\nxmax = y"), "2: xmin: a number is needed"),
        (replaced("size = 3", "size = 4"), "item .4.: class: a text is needed, there is the end of the file"),
        (replaced("size = 3", "size = 2.5"), "size: 2.5 is not a count"),
        (replaced('"IntervalTier"', '"Table"'), "tier 'words': class: 'Table' is not IntervalTier or TextTier"),
        (long()[:-40], "tier 'phones': 4: "),
        (short()[:-2], "tier 'phones': 4: text: a text is needed, there is nothing whole"),
        (replaced("\n0.4\n", "\nsoon\n", short), r"tier 'phones': \d: "),
        (long([("IntervalTier", "phones", [(0, -0.2, "a")])]), r"a\.wav: a phone ends before it begins, at 0\.000 s"),
        (long([("IntervalTier", "phones", [(0, 0.6, "a"), (0.5, 1, "b")])]), r"a\.wav: two phones at once, at 0\.5"),
        (long([("IntervalTier", "phones", PHONES)] * 2), "two phones at once"),
    ],
)
def test_a_broken_textgrid_is_named(folder, text, why):
    place = folder("a.wav")
    (place / "a.TextGrid").write_text(text, encoding="utf-8")
    with pytest.raises(alignments.BadAlignment, match=why) as said:
        alignments.read(place)
    assert str(said.value).startswith(f"{place / 'a.TextGrid'}: ") and "\n" not in str(said.value)


def test_a_textgrid_in_another_encoding_is_named(folder):
    place = folder("a.wav")
    (place / "a.TextGrid").write_bytes(long([("IntervalTier", "phones", [(0, 1, "ü")])]).encode("latin-1"))
    with pytest.raises(alignments.BadAlignment, match=r"a\.TextGrid: byte \d+: neither UTF-8 nor UTF-16"):
        alignments.read(place)


# ------------------------------------------------------------------------------------------- which files count


def of(text: str) -> str:
    return short([("IntervalTier", "phones", [(0, 1, text)])])


def test_textgrids_may_lie_in_a_tree_of_their_own(folder):
    place = folder("audio/x/a.flac", "audio/y/b.WAV", "grids/x/a.TextGrid", "grids/y/b.textgrid", "grids/no.TextGrid")
    for path in place.glob("grids/*/*"):
        path.write_text(of(path.stem))
    found = alignments.read(place)
    assert found.phone.tolist() == ["a", "b"]
    assert found.path.tolist() == [str(place / "audio/x/a.flac"), str(place / "audio/y/b.WAV")]


def test_what_lies_beside_the_sound_comes_first(folder):
    place = folder("x/a.wav", "y/a.wav", "x/a.TextGrid", "y/a.TextGrid", "x/b.wav", "x/b.TextGrid", "grids/b.TextGrid")
    for path in place.rglob("*.TextGrid"):
        path.write_text(of(path.parent.name))
    assert alignments.read(place).phone.tolist() == ["x", "x", "y"]


def test_what_could_tell_of_two_sounds_is_refused(folder):
    place = folder("x/a.wav", "y/a.wav", "grids/a.TextGrid")
    with pytest.raises(alignments.BadAlignment, match=r"a\.TextGrid: x/a\.wav and y/a\.wav have its name"):
        alignments.read(place)
    (place / "y/a.wav").unlink()
    folder("more/a.TextGrid")
    with pytest.raises(alignments.BadAlignment, match=r"more/a\.TextGrid: grids/a\.TextGrid tells of the same sound"):
        alignments.read(place)


def test_textgrids_none_of_which_has_a_sound_are_a_mistake(folder):
    with pytest.raises(alignments.BadAlignment, match=r"b\.TextGrid: no sound file below .* has this name"):
        alignments.read(folder("a.wav", "b.TextGrid"))


def test_a_table_comes_before_textgrids_and_these_before_ctm(folder):
    place = folder("a.wav")
    (place / "phones.ctm").write_text("a 1 0 1 ctm\n")
    assert alignments.read(place).phone.tolist() == ["ctm"]
    (place / "a.TextGrid").write_text(of("grid"))
    assert alignments.read(place).phone.tolist() == ["grid"]
    (place / "phones.tsv").write_text("file_name\tstart_s\tend_s\tphone\na.wav\t0\t1\ttable\n")
    assert alignments.read(place).phone.tolist() == ["table"]


def test_a_folder_that_tells_nothing(folder):
    for kind, name in (("phones", "phone"), ("words", "word")):
        found = alignments.read(folder("a.wav"), kind)
        assert found.empty and list(found) == ["path", "start", "end", name]
        assert alignments.digest(folder("a.wav"), kind) == ""
    with pytest.raises(ValueError, match="kind: 'letters' is not one of phones, words"):
        alignments.read(folder("a.wav"), "letters")


def test_every_file_counts_for_the_digest(folder):
    place = folder("audio/a.wav", "audio/b.wav")
    seen = [alignments.digest(place)]
    for name, text in (("audio/a.TextGrid", of("s")), ("audio/b.TextGrid", of("s")), ("audio/b.TextGrid", of("z"))):
        (place / name).write_text(text)
        seen.append(alignments.digest(place))
    (place / "audio/b.TextGrid").rename(place / "b.TextGrid")
    seen.append(alignments.digest(place))
    (place / "phones.csv").write_text("file_name,start_ms,end_ms,phone\n")
    seen.append(alignments.digest(place))
    assert len(set(seen)) == len(seen)
    assert frame_alignment.digest(place) == seen[-1]
    before = alignments.digest(place, "words")
    (place / "words.csv").write_text("file_name,start_ms,end_ms,word\n")
    assert alignments.digest(place, "words") != before and frame_alignment.digest(place) == seen[-1]


# --------------------------------------------------------------------------------------------- CTM and tables


def test_ctm_is_read(folder):
    place = folder("audio/a.wav", "audio/b.flac")
    (place / "phones.ctm").write_text(
        ";; made by hand\na 1 0.30 0.10 i 0.97\n\naudio/b.flac 1 0.00 0.25 t\naudio/a A 0.1 .2 s\nb 1 0.25 0.05 <eps>\n"
        "gone 1 0 1 x\n"
    )
    (place / "ali.ctm").write_text("a 1 0.1 0.3 see\n")
    found = alignments.read(place)
    assert found.phone.tolist() == ["s", "i", "t"]
    np.testing.assert_allclose(found[["start", "end"]], [[0.1, 0.3], [0.3, 0.4], [0.0, 0.25]])
    assert found.path.tolist() == [str(place / name) for name in ("audio/a.wav", "audio/a.wav", "audio/b.flac")]
    assert alignments.read(place, "words").word.tolist() == ["see"]


def test_kaldis_places_in_a_word_are_taken_off(folder):
    place = folder("a.wav")
    (place / "phones.ctm").write_text("a 1 0 1 SIL\na 1 1 1 HH_B\na 1 2 1 AH0_I\na 1 3 1 L_E\na 1 4 1 AH_S\n")
    assert alignments.read(place).phone.tolist() == ["SIL", "HH", "AH0", "L", "AH"]
    (place / "phones.ctm").write_text("a 1 0 1 t_B\na 1 1 1 s\na 1 2 1 i\n")
    assert alignments.read(place).phone.tolist() == ["t_B", "s", "i"], "one of three is a label of its own"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a 1 0.1 s", "line 2: 4 fields; file, channel, start, duration and label are needed"),
        ("a 1 soon 0.1 s", "line 2: start: 'soon' is not a number"),
        ("a 1 0.1 nan s", "line 2: duration: 'nan' is not a number"),
        ("a 1 0.1 -0.2 s", r"a\.wav: a phone ends before it begins, at 0\.100 s"),
        ("a 1 0.5 0.2 s", r"a\.wav: two phones at once, at 0\.500 s"),
        ("c 1 0.5 0.2 s", r"x/c\.wav and y/c\.wav have its name"),
    ],
)
def test_a_broken_ctm_is_named(folder, line, why):
    place = folder("a.wav", "x/c.wav", "y/c.wav")
    (place / "phones.ctm").write_text(f"a 1 0.4 0.2 i\n{line}\n")
    with pytest.raises(alignments.BadAlignment, match=why) as said:
        alignments.read(place)
    assert str(said.value).startswith(f"{place / 'phones.ctm'}: ")


def test_a_table_of_words_says_words(folder):
    place = folder("a.wav")
    (place / "words.csv").write_text("file_name,start_ms,end_ms,word,by\na.wav,500,900,two,me\na.wav,100,500,one,me\n")
    found = alignments.read(place, "words")
    assert list(found) == ["path", "start", "end", "word", "by"] and found.word.tolist() == ["one", "two"]
    (place / "words.csv").write_text("file_name,start_ms,end_ms,word\na.wav,500,900,two\na.wav,100,600,one\n")
    with pytest.raises(alignments.BadAlignment, match=r"words\.csv: a\.wav: two words at once, at 0\.500 s"):
        alignments.read(place, "words")


def test_the_demos_words_hold_its_phones():
    """Each phone lies in the word whose number it names."""
    place = profiles.DEMO / "corpus"
    found, told = frame_alignment.words(place), frame_alignment.read(place)
    both = told.merge(found, on=["path", "word_index"], suffixes=("", "_of_word"))
    assert len(found) > 3000 and len(both) == len(told) and (both.word == both.word_of_word).all()
    assert (both.start > both.start_of_word - 1e-3).all() and (both.end < both.end_of_word + 1e-3).all()


def test_hand_made_textgrids_say_what_their_table_says(shared, tmp_path):
    """emuR's example: the table was made from its TextGrids by another reader."""
    place = shared / "speech" / "emur-ae-aligned"
    shutil.copytree(place / "textgrid", tmp_path / "textgrid")
    (tmp_path / "audio").mkdir()
    for path in (place / "audio").glob("*.flac"):
        (tmp_path / "audio" / path.name).touch()
    found, table = alignments.read(tmp_path), alignments.read(place)
    assert found.phone.tolist() == table.phone.tolist() and len(found) > 200
    np.testing.assert_allclose(found[["start", "end"]], table[["start", "end"]], atol=1e-6)
    for tier in ("", "Text"):
        said = alignments.read(tmp_path, "words", tier=tier)
        assert {"amongst", "her", "friends"} <= set(said.word) and not {"C", "F"} & set(said.word)


# ----------------------------------------------------------------------------------- frames in phones and words


def test_frames_are_placed_in_phones():
    told = pd.DataFrame({"clip": [1, 0, 0], "start": [0.0, 0.10, 0.04], "end": [0.06, 0.16, 0.10]})
    told = told.assign(phone=["t", "i", "s"])
    clip, moment = np.repeat([0, 1, 2], 9), np.tile((np.arange(9) + 0.5) * 0.02, 3)
    where = frame_alignment.placed(told, clip, moment)
    assert where.row.tolist() == [-1, -1, 2, 2, 2, 1, 1, 1, -1] + [0] * 3 + [-1] * 6 + [-1] * 9
    assert where.third.tolist() == [-1, -1, 0, 1, 2, 0, 1, 2, -1] + [0, 1, 2] + [-1] * 15
    np.testing.assert_allclose(where.since[2:8], [0.01, 0.03, 0.05] * 2)
    np.testing.assert_allclose(where.since + where.left, np.where(where.row < 0, np.nan, 0.06))
    assert frame_alignment.labels(told, where).tolist() == ["", "", *"sssiii", "", *"ttt", *[""] * 15]
    inner = frame_alignment.labels(told, where, tolerance=0.015)
    assert np.flatnonzero(inner != "").tolist() == [3, 6, 10] and "".join(inner) == "sit"
    assert set(frame_alignment.labels(told, where, tolerance=0.04)) == {""}


def test_frames_of_clips_that_nothing_is_told_of():
    told = frame_alignment.read("nowhere").assign(clip=pd.Series(dtype=int))
    where = frame_alignment.placed(told, np.zeros(3, int), np.arange(3) * 0.02)
    assert where.row.tolist() == [-1] * 3 and frame_alignment.labels(told, where).tolist() == [""] * 3
    assert where.third.tolist() == [-1] * 3


@given(st.data())
def test_placing_frames_is_asking_each_clip(data):
    """Any order of the table and of the frames."""
    rows = []
    for clip in range(3):
        edges = sorted(data.draw(st.sets(st.integers(0, 40), max_size=8)))
        rows += [(clip, a / 100, b / 100) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    told = pd.DataFrame(data.draw(st.permutations(rows)), columns=["clip", "start", "end"])
    asked = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 42)), min_size=1, max_size=12))
    where = frame_alignment.placed(told, np.array([clip for clip, _ in asked]), np.array([at / 100 for _, at in asked]))
    for row, (clip, at) in zip(where.row, asked, strict=True):
        slow = [n for n, (c, a, b) in enumerate(told.to_numpy()) if c == clip and a <= at / 100 < b]
        assert [row] == (slow or [-1])


# -------------------------------------------------------------------------------------- damaged and odd files


def of_bytes(tmp_path, name: str, content: bytes, kind: str = "phones") -> pd.DataFrame | str:
    """What a corpus with one sound and one file of alignments gives; of what is refused the message, of one line."""
    (tmp_path / "a.wav").touch()
    (tmp_path / name).write_bytes(content)
    try:
        return alignments.read(tmp_path, kind)
    except (alignments.BadAlignment, tables.BadSpeech) as error:
        assert name in str(error) and str(error).isprintable(), error
        return str(error)


TABLE = "file_name,start_ms,end_ms,phone\na.wav,0,100,s\na.wav,100,200,i\na.wav,200,350,t\n"
CTM = "a 1 0.00 0.10 s\na 1 0.10 0.10 i\na 1 0.20 0.15 t\n"


@given(
    st.data(),
    st.sampled_from([("phones.csv", TABLE), ("phones.ctm", CTM), ("a.TextGrid", long()), ("a.TextGrid", short())]),
)
def test_damaged_alignments_are_read_or_refused_in_one_line(tmp_path_factory, data, which):
    name, text = which
    content = damaged(data, text.encode(), [b'"', b"\0", b"1e400", b"-1", b"\xff", b"\r", b"<", b","])
    found = of_bytes(tmp_path_factory.mktemp("damaged"), name, content)
    if not isinstance(found, str) and len(found):
        assert np.isfinite(found[["start", "end"]]).all(axis=None) and (found.start >= 0).all()
        assert (found.end >= found.start).all()


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.TextGrid", long().replace("size = 3 \nitem", "size = 1e400 \nitem"), "size: 1e400"),
        ("a.TextGrid", long().replace("xmin = 0.2", "xmin = 1e400", 1), "1e400"),
        ("a.TextGrid", long().replace("intervals: size = 4", "intervals: size = 2"), "more follows than it announces"),
        ("a.TextGrid", short().replace("\n4\n", "\n2\n"), "more follows than it announces"),
        ("a.TextGrid", long().replace("xmin = 0.2", "xmin = -0.2"), "begins before its sound"),
        ("phones.csv", TABLE.replace("start_ms", "phone"), "two columns are called 'phone'"),
        ("phones.csv", TABLE.replace("a.wav,100", "a\0.wav,100"), "line 3: a zero byte"),
        ("phones.csv", TABLE.replace(",s\n", ',"s\n'), "line 2: "),
        ("phones.csv", TABLE.replace(",0,100", ",-10,100"), "begins before its sound"),
        ("phones.ctm", CTM.replace("0.00", "-0.05"), "begins before its sound"),
        ("phones.ctm", CTM.replace("0.00", "1e400"), "line 1: start: '1e400' is not a number"),
    ],
)
def test_what_an_alignment_cannot_say_is_refused_with_its_place(tmp_path, name, text, why):
    assert why in of_bytes(tmp_path, name, text.encode())


def test_an_x_sampa_quotation_mark_is_a_phone_in_a_table_parted_by_tabs(tmp_path):
    found = of_bytes(tmp_path, "phones.tsv", TABLE.replace(",", "\t").replace("\ts\n", '\t"i:\n').encode())
    assert found.phone.tolist() == ['"i:', "i", "t"]


@pytest.mark.parametrize("name", ["phones.csv", "a.TextGrid", "phones.ctm"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    (tmp_path / "a.wav").touch()
    os.mkfifo(tmp_path / name)
    if name == "a.TextGrid":
        with pytest.raises(alignments.BadAlignment, match="not a regular file"):
            alignments.read(tmp_path)
    else:
        assert alignments.read(tmp_path).empty  # a pipe is no table of the corpus


@pytest.mark.parametrize("deep", ["", "one", "one/two"])
def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, deep):
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / "one" / "two" / "a.wav").touch()
    (tmp_path / "b.wav").touch()
    scandir = os.scandir

    def refuse(path="."):
        if str(path) == str(tmp_path / deep):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for read in (corpora.rows, alignments.read):
        with pytest.raises(tables.BadSpeech, match=f"{deep}: cannot be listed: Permission denied"):
            read(tmp_path)
