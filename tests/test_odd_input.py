"""Odd sound, odd names and odd tables: what happens to each, as `data/README.md` says it does."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from whisper_sae import cache
from whisper_sae.data import audio, clip_table, corpora
from whisper_sae.experiments import pipeline

README = Path(__file__).resolve().parents[1] / "data" / "README.md"
RATE = 16_000
TONE = (0.3 * np.sin(np.arange(8_000) / 10)).astype(np.float32)  # half a second


@dataclass(frozen=True)
class Odd:
    """One thing that may be odd about a corpus: how to make it so, and what must come of it."""

    what: str
    spoil: Callable[[Path], None]
    outcome: str  # read | skipped | refused
    how: str
    words: list[str] = field(default_factory=list)
    check: Callable[[pd.DataFrame, np.ndarray], bool] = lambda clip, sound: True


def first(folder: Path) -> Path:
    return folder / "audio" / "v00_0.flac"


def table(folder: Path, change: Callable[[str], str], encoding="utf-8") -> None:
    path = folder / "metadata.csv"
    path.write_bytes(change(path.read_text(encoding="utf-8")).encode(encoding))


def renamed(folder: Path, name: str) -> Path:
    """The first clip's row names `audio/<name>` from now on; the file itself is gone."""
    raw = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    raw.loc[0, "file_name"] = f"audio/{name}"
    raw.to_csv(folder / "metadata.csv", index=False, quoting=1)
    first(folder).unlink()
    return folder / "audio" / name


def sound(samples, rate=RATE, name="odd.wav", **how):
    """Another sound in the place of the first clip."""
    return lambda folder: soundfile.write(renamed(folder, name), samples, rate, **how)


def named(name: str, on_disk: str = ""):
    """Another name for the first clip, in the table and on disk."""

    def spoil(folder: Path) -> None:
        content = first(folder).read_bytes()
        path = renamed(folder, name)
        (path.with_name(on_disk) if on_disk else path).write_bytes(content)

    return spoil


def content(change: Callable[[bytes], bytes]):
    return lambda folder: first(folder).write_bytes(change(first(folder).read_bytes()))


def cut(name: str, share: float, **how):
    def spoil(folder: Path) -> None:
        path = renamed(folder, name)
        soundfile.write(path, np.tile(TONE, 4), RATE, **how)
        assert len(clip_table.samples(path)) == 4 * len(TONE), "as long as it is whole it can be read"
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return spoil


def spoilt(value: float):
    samples = TONE.copy()
    samples[7] = value
    return sound(samples, subtype="FLOAT")


def in_place(make: Callable[[Path], None]):
    """Something that is no file in the place of the first clip."""

    def spoil(folder: Path) -> None:
        first(folder).unlink()
        make(first(folder))

    return spoil


def linked(folder: Path) -> None:
    outside = folder.parent / "outside.flac"
    shutil.move(first(folder), outside)
    first(folder).symlink_to(outside)


def three_hours(folder: Path) -> None:
    path, quiet = renamed(folder, "long.flac"), np.zeros(60 * 4_000, dtype=np.int16)
    with soundfile.SoundFile(path, "w", 4_000, 1) as file:
        for _minute in range(180):
            file.write(quiet)


def twice(name: str):
    """A sound file that is joined to itself, as `cat` joins."""

    def spoil(folder: Path) -> None:
        path = renamed(folder, name)
        soundfile.write(path, TONE, RATE)
        path.write_bytes(2 * path.read_bytes())

    return spoil


def without_last_page(folder: Path) -> None:
    path = renamed(folder, "odd.ogg")
    soundfile.write(path, np.tile(TONE, 8), RATE)
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"OggS")])


def lines_of_json(folder: Path) -> None:
    """The table as JSON lines, in the first of which the speaker is named twice."""
    raw = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    text = raw.to_json(orient="records", lines=True).replace("{", '{"speaker": "another", ', 1)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    (folder / "metadata.csv").unlink()


def stray(told: str) -> str:
    """Two rows whose transcripts begin with a quotation mark that nothing closes."""
    return told.replace("clip 0", '"clip 0', 1).replace("clip 2", '"clip 2', 1)


def taken_in(told: str) -> str:
    """Two quotation marks that make one row of two."""
    return told.replace("clip 0", '"clip 0', 1).replace(",clip 1,", ',",', 1)


def no_table(folder: Path) -> None:
    (folder / "metadata.csv").unlink()


def row(text: str):
    return lambda folder: table(folder, lambda told: told + text + "\n")


def cell(old: str, new: str):
    return lambda folder: table(folder, lambda told: told.replace(old, new, 1))


def unnamed_column(folder: Path) -> None:
    table(folder, lambda told: "\n".join(f"{n or ''},{line}" for n, line in enumerate(told.splitlines())) + "\n")


def foreign_files(folder: Path) -> None:
    no_table(folder)
    (folder / "audio" / "notes.txt").write_text("not a sound")
    (folder / "audio" / "._v00_0.flac").write_bytes(b"of a Mac")
    (folder / "cover.jpg").write_bytes(b"\xff\xd8")


def m4a(folder: Path) -> None:
    no_table(folder)
    (folder / "audio" / "z.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing here")


def many_broken(folder: Path) -> None:
    for path in sorted((folder / "audio").iterdir())[2:5]:
        path.write_bytes(b"")


def not_text(folder: Path) -> None:
    no_table(folder)
    os.rename(first(folder), os.fsencode(first(folder)).replace(b"v00_0", b"v\xff"))


def deeper(folder: Path) -> None:
    (folder / "part").mkdir()
    shutil.move(folder / "metadata.csv", folder / "part" / "metadata.csv")


def length(samples: int):
    return lambda clip, sound: len(sound) == samples and clip.duration == pytest.approx(samples / RATE, abs=1e-4)


def text(said: str):
    return lambda clip, sound: clip.text == said


CLICKS = np.sign(TONE).astype(np.float32)
ODD = [
    # --- sound
    Odd("stereo", sound(np.stack([TONE, -TONE / 2], axis=1)), "read", "the mean of its channels, as long as mono",
        check=lambda clip, sound: len(sound) == 8_000 and abs(sound - TONE / 4).max() < 1e-4),
    Odd("six channels", sound(np.stack([TONE] * 6, axis=1)), "read", "the mean of its channels", check=length(8_000)),
    Odd("8 kHz", sound(TONE, 8_000), "read", "resampled to 16 kHz; nothing above 4 kHz comes into being",
        check=length(16_000)),
    Odd("48 kHz", sound(TONE, 48_000), "read", "resampled; what lies above 8 kHz vanishes", check=length(2_667)),
    Odd("an unusual rate, 22,255 Hz", sound(TONE, 22_255), "read", "resampled", check=length(5_752)),
    Odd("16 Hz", sound(TONE[:16], 16), "read", "resampled: one second", check=length(16_000)),
    Odd("8-bit WAV", sound(TONE, subtype="PCM_U8"), "read", "as it is", check=length(8_000)),
    Odd("24-bit WAV", sound(TONE, subtype="PCM_24"), "read", "as it is", check=length(8_000)),
    Odd("float WAV, louder than full scale", sound(9 * TONE, subtype="FLOAT"), "read", "as it is, not clipped",
        check=lambda clip, sound: sound.max() > 2.6),
    Odd("MP3", sound(TONE, name="odd.mp3"), "read", "by libsndfile, without ffmpeg", check=length(8_000)),
    Odd("Ogg Opus", sound(TONE, name="odd.opus", format="OGG", subtype="OPUS"), "read", "by libsndfile",
        check=length(8_000)),
    Odd("FLAC that is called .wav", sound(TONE, format="FLAC"), "read", "what a file is, its content says",
        check=length(8_000)),
    Odd("DC offset", sound(TONE / 2 + 0.5, subtype="FLOAT"), "read", "as it is: the offset stays",
        check=lambda clip, sound: abs(sound.mean() - 0.5) < 0.01),
    Odd("clipped", sound(CLICKS * 0.999), "read", "as it is", check=length(8_000)),
    Odd("digital silence", sound(0 * TONE), "read", "as it is; its frames are silence", check=length(8_000)),
    Odd("0.01 s long", sound(TONE[:160]), "read", "one frame", check=length(160)),
    Odd("a single sample", sound(TONE[:1]), "read", "one frame", check=length(1)),
    Odd("3 h long", three_hours, "read", "cut into windows, each read by itself; no sample lost or heard twice",
        check=lambda clip, sound: clip.duration == 10_800
        and len(audio.excerpt(clip.path, 10_780 * RATE, 30 * RATE)) == 20 * RATE),
    Odd("empty file", content(lambda old: b""), "skipped", "the file is empty", ["empty"]),
    Odd("header without samples", sound(TONE[:0]), "skipped", "holds no samples", ["no samples"]),
    Odd("FLAC cut within its header", content(lambda old: old[:60]), "skipped", "cannot be decoded"),
    Odd("truncated FLAC", content(lambda old: old[: len(old) // 2]), "skipped", "cannot be decoded to its end"),
    Odd("truncated WAV", cut("odd.wav", 0.99), "skipped", "truncated", ["truncated"]),
    Odd("truncated AIFF", cut("odd.aiff", 0.7), "skipped", "truncated", ["truncated"]),
    Odd("truncated Ogg Vorbis", cut("odd.ogg", 0.99), "skipped", "truncated", ["truncated"]),
    Odd("truncated Opus", cut("odd.opus", 0.6, format="OGG", subtype="OPUS"), "skipped", "truncated", ["truncated"]),
    Odd("Ogg without its last page", without_last_page, "skipped", "truncated, although all that is left decodes",
        ["truncated Ogg"]),
    Odd("truncated MP3", cut("odd.mp3", 0.5), "skipped", "truncated, where its first frame tells the length",
        ["truncated"]),
    Odd("two MP3 files joined", twice("odd.mp3"), "skipped", "the share that is decoded is named; convert it",
        ["several files were joined"]),
    Odd("chained Ogg streams", twice("odd.ogg"), "skipped", "the first alone is decoded; part or convert them",
        ["several Ogg streams"]),
    Odd("bytes overwritten in the middle", content(lambda old: old[:2_000] + bytes(2_000) + old[4_000:]), "skipped",
        "cannot be decoded to its end"),
    Odd("NaN", spoilt(float("nan")), "skipped", "1 samples are NaN or infinite", ["1 samples are NaN or infinite"]),
    Odd("infinite samples", spoilt(float("-inf")), "skipped", "1 samples are NaN or infinite", ["infinite"]),
    Odd("samples of 1e20", spoilt(1e20), "skipped", "a sample of 1e+20, which is no sound", ["a sample of 1e+20"]),
    Odd("text that is called .flac", content(lambda old: b"A dark and stormy night.\n" * 20), "skipped",
        "not a sound file that can be read", ["not a sound file"]),
    Odd("AAC in .m4a", m4a, "skipped", "not a sound file that can be read; convert it to FLAC", ["convert it to FLAC"]),
    Odd("a file that the table names is missing", in_place(lambda path: None), "skipped", "no such file",
        ["no such file"]),
    Odd("a directory that is called like a file", in_place(Path.mkdir), "skipped", "not a file", ["not a file"]),
    Odd("a named pipe", in_place(os.mkfifo), "skipped", "not a file; nothing waits for it", ["not a file"]),
    Odd("no permission to read", lambda folder: first(folder).chmod(0), "skipped", "cannot be read",
        ["Permission denied"]),
    Odd("more broken files than `most_rejected` allows", many_broken, "refused",
        "the run stops, says how many and names the first three",
        ["3 of 24", "most_rejected", "v00_2.flac: the file is empty"]),
    # --- names
    Odd("letters beyond ASCII", named("Größe 音声 🎧.flac"), "read", "as any other"),
    Odd("letters composed otherwise on disk than in the table", named("Gr\u00f6\u00dfe.flac", "Gro\u0308\u00dfe.flac"),
        "read", "both forms are tried"),
    Odd("a line break in the name", named("a\nb\r.flac"), "read", "its id and every message write it as an escape",
        check=lambda clip, sound: clip.id == r"audio/a\nb\r"),
    Odd("quotes, commas and blanks in the name", named("""it's "a", b ;.flac"""), "read", "as any other"),
    Odd("a name that begins with a dash", named("-rf.flac"), "read", "as any other"),
    Odd("HTML in the name", named("<script>alert(1)<\u2215script>&amp;.flac"), "read", "pages show it as text"),
    Odd("backslashes for slashes", cell("audio/v00_0", "audio\\v00_0"), "read", "the other slash is tried"),
    Odd("a link to a file elsewhere", linked, "read", "the file behind it, whose bytes are in the key"),
    Odd("a path that leaves the corpus, `../`", row("../../../../../../../../etc/passwd,,v00,female,train"), "refused",
        "lies outside", ["file_name", "etc/passwd", "outside"]),
    Odd("an absolute path elsewhere", row("/etc/passwd,,v00,female,train"), "refused", "lies outside", ["outside"]),
    Odd("a name that is not UTF-8", not_text, "refused", "rename it", ["not text in UTF-8", r"\udcff"]),
    Odd("one file named twice", cell("audio/v00_1.flac", "./audio/v00_0.flac"), "refused", "the row is named",
        ["file_name", "audio/v00_0.flac", "2 times"]),
    Odd("two files of one id, a.flac and a.wav", sound(TONE, name="v00_1.wav"), "read", "ids keep their endings",
        check=lambda clip, sound: clip.id == "audio/v00_1.wav"),
    # --- tables
    Odd("JSON lines with a field written twice", lines_of_json, "refused", "the line and the field are named",
        ["metadata.jsonl", "line 1", "'speaker' is there twice"]),
    Odd("byte order mark", lambda folder: table(folder, str, "utf-8-sig"), "read", "as any other"),
    Odd("CRLF line ends", lambda folder: table(folder, lambda told: told.replace("\n", "\r\n")), "read",
        "as any other"),
    Odd("a line break in a transcript", cell("clip 0", '"clip\n 0"'), "read", "becomes a blank", check=text("clip  0")),
    Odd("a column without a name", unnamed_column, "read", "row numbers, left out"),
    Odd("a row with too few fields", cell("audio/v00_0.flac,clip 0,v00,female,train", "audio/v00_0.flac,clip 0,v00"),
        "read", "the last ones are empty", check=lambda clip, sound: clip.gender == ""),
    Odd("the file ends within its last row", lambda folder: table(folder, lambda told: told[: told.rindex(",")]),
        "refused", "the line is named", ["metadata.csv", "line 25", "the file ends after 4 of 5 fields"]),
    Odd("a stray quotation mark", cell("clip 0", '"clip 0'), "refused", "the line is named",
        ["metadata.csv", "line 2", "quotation mark"]),
    Odd("two stray quotation marks", lambda folder: table(folder, stray), "refused", "the line is named",
        ["metadata.csv", "line 2", "quotation mark"]),
    Odd("a quotation mark that takes in another row", lambda folder: table(folder, taken_in), "refused",
        "both lines are named", ["line 2", "takes in line 3, which looks like a row"]),
    Odd("a zero byte in the table", cell("clip 1", "clip\0 1"), "refused", "the line is named",
        ["metadata.csv", "line 3", "zero byte"]),
    Odd("a row with too many fields", row("audio/v00_0.flac,a,b,c,d,e,f,g"), "refused", "the line is named",
        ["metadata.csv", "line 26", "8 fields"]),
    Odd("fields parted by semicolons", lambda folder: table(folder, lambda told: told.replace(",", ";")), "refused",
        "must be parted by commas", ["'file_name'", "';'"]),
    Odd("no column `file_name`", cell("file_name", "file"), "refused", "no column 'file_name'; the others are named",
        ["'file_name'", "file, text, speaker"]),
    Odd("two columns of one name", cell("text", "speaker"), "refused", "two columns are called so", ["'speaker'"]),
    Odd("a table without rows", lambda folder: table(folder, lambda told: told.splitlines()[0] + "\n"), "refused",
        "no rows", ["no rows"]),
    Odd("an empty table", lambda folder: table(folder, lambda told: ""), "refused", "the table is empty", ["empty"]),
    Odd("a table in UTF-16", lambda folder: table(folder, str, "utf-16"), "refused", "save it as UTF-8", ["UTF-8"]),
    Odd("a row without a file", row(",,v00,female,train"), "refused", "empty in one of the rows",
        ["file_name", "empty"]),
    Odd("a split called `dev`, `val` or `valid`", cell("validation", "dev"), "read", "is `validation`"),
    Odd("an unknown split", cell("v00,female,train", "v00,female,heldout"), "refused", "the splits are named",
        ["split", "'heldout'", "validation"]),
    Odd("a speaker in two splits", cell("v00,female,train", "v00,female,test"), "refused", "the speaker is named",
        ["split", "'v00'"]),
    # --- folders
    Odd("no table at all", no_table, "read", "a bare folder: clips without speakers or labels",
        check=lambda clip, sound: clip.speaker == ""),
    Odd("other files, hidden files", foreign_files, "read", "in a bare folder they are passed over"),
    Odd("a table in a folder further down", deeper, "refused", "name its directory, or move it up",
        ["part/metadata.csv"]),
    Odd("nothing that is sound", emptied, "refused", "the message says where layouts are listed", ["neither sound"]),
    Odd("no such directory", shutil.rmtree, "refused", "there is no directory", ["no directory"]),
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.what)
def test_odd_input(odd, small_whisper, corpus, data, run_for):
    if odd.what == "no permission to read" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    folder = corpus()
    run = run_for(small_whisper, folder)
    before = cache.make(pipeline.clips(run, 0))
    known = pipeline.table(run, before).path
    odd.spoil(folder)
    if odd.outcome == "refused":
        with pytest.raises(clip_table.BadSpeech) as said:
            cache.make(pipeline.clips(run, 0))
        one_line(str(said.value), odd.words)
        assert {path.name for path in (data / "steps" / "clips").glob("[!.]*")} == {before.key}
    else:
        step = cache.make(pipeline.clips(run, 0))
        assert (step.key == before.key) == (odd.spoil is linked)  # the same bytes, the same key
        rejected, heard = step.table("rejected.csv"), pipeline.table(run, step)
        assert step.facts["rejected"] == len(rejected) == (odd.outcome == "skipped")
        assert len(heard) == 24 - (odd.outcome == "skipped" and odd.what != "AAC in .m4a")
        assert all(Path(path).is_file() for path in heard.path)
        if odd.outcome == "skipped":
            one_line(rejected.reason[0], odd.words)
            assert rejected.corpus[0] == "voices"
            assert Path(rejected.path[0]).parent.name == "audio"
        else:
            clip = next(pd.concat([heard[~heard.path.isin(known)], heard]).itertuples())
            assert odd.check(clip, np.zeros(1) if clip.duration > 9_000 else clip_table.samples(clip.path))
    before.verify()
    assert len(before.table("clips.csv")) == 24


def one_line(said: str, words: list[str]) -> None:
    assert said.strip()
    assert said.isprintable(), said
    assert len(said) < 600, said
    for word in words:
        assert word in said


def test_the_readme_tells_what_happens():
    cells = [(odd.what, f"{odd.outcome}: {odd.how}") for odd in ODD]
    told = "\n".join(["| what is odd | what happens |", "|---|---|", *(f"| {what} | {how} |" for what, how in cells)])
    assert len(ODD) >= 25
    assert told in README.read_text(encoding="utf-8"), f"data/README.md must hold this table:\n{told}"


def test_a_name_stays_whole_through_the_table_of_clips(small_whisper, corpus, data, run_for):
    folder = corpus(voices=1, clips=2)
    named("a\nb\r.flac")(folder)
    run = run_for(small_whisper, folder)
    heard = pipeline.table(run, cache.make(pipeline.clips(run, 0)))
    assert heard.path[0] == str(folder / "audio" / "a\nb\r.flac")
    assert clip_table.samples(heard.path[0]).any()


@pytest.mark.parametrize(
    ("share", "broken", "stops"),
    [(0.01, 1, False), (0.01, 2, True), (0, 1, True), (0.1, 3, False), (1, 23, False), (1, 24, True)],
)
def test_so_many_may_be_broken(small_whisper, corpus, data, run_for, share, broken, stops):
    folder = corpus()
    for path in sorted((folder / "audio").iterdir())[:broken]:
        path.write_bytes(b"fLaC and nothing more")
    recipe = pipeline.clips(run_for(small_whisper, folder, most_rejected=share), 0)
    if stops:
        with pytest.raises(clip_table.BadSpeech, match=f"{broken} of 24 sound files cannot be used") as said:
            cache.make(recipe)
        one_line(str(said.value), ["v00_0.flac"])
    else:
        step = cache.make(recipe)
        assert (step.facts["clips"], step.facts["rejected"]) == (24 - broken, broken)
        assert step.table("rejected.csv").columns.tolist() == ["corpus", "path", "reason"]


def test_a_mended_file_is_heard(small_whisper, corpus, data, run_for):
    folder = corpus(voices=2, clips=2)
    whole = first(folder).read_bytes()
    first(folder).unlink()
    run = run_for(small_whisper, folder)
    assert cache.make(pipeline.clips(run, 0)).facts["clips"] == 3
    first(folder).write_bytes(whole)
    assert cache.make(pipeline.clips(run, 0)).facts["clips"] == 4


def test_messages_are_one_line_whatever_is_in_them():
    assert str(corpora.BadSpeech("a\nb\x1b[31m\u202e\udcff")) == r"a\nb\x1b[31m\u202e\udcff"


def test_labels_that_look_like_numbers_stay_apart(small_whisper, corpus, data, run_for):
    """01, 1, 1.0 and 001 are four stations."""
    folder, stations = corpus(voices=4, clips=1), ["01", "1", "1.0", "001"]
    raw = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False).assign(station=stations, yes="True")
    raw.to_csv(folder / "metadata.csv", index=False)
    heard = pipeline.table(run := run_for(small_whisper, folder), cache.make(pipeline.clips(run, 0)))
    assert sorted(heard.station) == sorted(stations) and set(heard.yes) == {"True"}
    assert heard.duration.dtype == float
