"""Corpora as they are released, built here in their true layouts, become one table whatever they call things."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
from damage import damaged
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from whisper_sae import cache, profiles
from whisper_sae.data import clip_table, corpora, hub, tables
from whisper_sae.experiments import pipeline

RATE = 16_000
TONE = (0.3 * np.sin(np.arange(8_000) / 10)).astype(np.float32)


def put(path: Path, samples=TONE, rate=RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# ----------------------------------------------------------------------------------------------- LibriSpeech

SPEAKERS = """;; Some pieces of metadata about all the speakers
;ID  |SEX| SUBSET           |MINUTES| NAME
60   | M | train-clean-100  | 20.18 | |CBW|Simon
84   | F | dev-clean        |  8.02 | Christie Nowak
174  | M | dev-clean        |  8.04 | Peter Eastman
121  | F | test-clean       |  8.13 | Nikolle Doolin
"""


@pytest.fixture
def librispeech(tmp_path):
    """The tree that the archives unpack to: `librispeech(subset, …)` gives `LibriSpeech`, two clips a chapter."""

    def build(*subsets: str) -> Path:
        root = tmp_path / "unpacked" / "LibriSpeech"
        write(root / "SPEAKERS.TXT", SPEAKERS)
        for name in ("README.TXT", "LICENSE.TXT", "CHAPTERS.TXT", "BOOKS.TXT"):
            write(root / name, "; text | that | nobody reads\n")
        for line in SPEAKERS.splitlines()[2:]:
            speaker, _, subset = (field.strip() for field in line.split("|")[:3])
            if subset in subsets:
                for chapter in ("1000", "2000"):
                    home = root / subset / speaker / chapter
                    for number in range(2):
                        put(home / f"{speaker}-{chapter}-{number:04d}.flac")
                    said = [f"{speaker}-{chapter}-{number:04d} MISTER {number} QUILTER\n" for number in range(2)]
                    write(home / f"{speaker}-{chapter}.trans.txt", "".join(said))
        return root

    return build


def test_librispeech(librispeech):
    root = librispeech("dev-clean")
    for place in (root, root.parent, root / "dev-clean"):
        clips = clip_table.read(place)
        assert list(clips.columns) == [*clip_table.COLUMNS, "chapter", "subset"]
        assert clips.id.tolist() == sorted(
            f"{who}-{c}-000{n}" for who in (84, 174) for c in (1000, 2000) for n in (0, 1)
        )
        assert clips.groupby("speaker").gender.unique().str[0].to_dict() == {"84": "female", "174": "male"}
        assert clips.text[0] == "MISTER 0 QUILTER"
        assert (clips.split == "").all()
        assert (clips.duration == 0.5).all()
        assert all(Path(path).is_file() for path in clips.path)


def test_librispeech_with_all_its_sides_has_a_split(librispeech):
    clips = corpora.rows(librispeech("train-clean-100", "dev-clean", "test-clean"))
    sides = clips.groupby("subset").split.unique().str[0].to_dict()
    assert sides == {"train-clean-100": "train", "dev-clean": "validation", "test-clean": "test"}
    assert clips[clips.speaker == "60"].gender.unique() == ["male"]  # a name that begins with |


def test_librispeech_without_its_cast_and_with_files_gone(librispeech):
    root = librispeech("dev-clean")
    (root / "SPEAKERS.TXT").unlink()
    chapter = root / "dev-clean" / "84" / "1000"
    (chapter / "84-1000-0000.flac").unlink()
    put(chapter / "84-1000-0007.flac")
    clips = corpora.rows(root).set_index("id")
    assert set(clips.gender[clips.speaker == "84"]) == {"female"}  # of the bundled list of readers
    assert set(clips.gender_from) == {"LibriSpeech's list of readers"}
    assert clips.text["84-1000-0007"] == ""
    assert not Path(clips.path["84-1000-0000"]).exists()
    assert len(clips) == 9


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "dev-clean/84/1000/84-1000.trans.txt",
            "84-1000-0000 A\n84-1000-0000 B\n",
            ["line 2", "84-1000-0000", "twice"],
        ),
        ("SPEAKERS.TXT", "; all\n84 F dev-clean\n", ["SPEAKERS.TXT", "line 2", "84 F dev-clean"]),
    ],
)
def test_librispeech_that_is_broken(librispeech, name, text, words):
    root = librispeech("dev-clean")
    write(root / name, text)
    refused(root, *words)


def refused(place: Path, *words: str) -> None:
    with pytest.raises(clip_table.BadSpeech) as said:
        corpora.rows(place)
    assert str(said.value).isprintable()
    for word in words:
        assert word in str(said.value)


# ---------------------------------------------------------------------------------------------- Common Voice

HEADER = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment"
)


@pytest.fixture
def commonvoice(tmp_path):
    """A release of Common Voice 17 with one language; three voices, two clips each, in `validated.tsv` and parts."""
    home = tmp_path / "cv-corpus-17.0-2024-03-15" / "en"
    who = [("a" * 128, "male_masculine", "England English"), ("b" * 128, "female_feminine", "Scottish English,Welsh"),
           ("c" * 128, "do_not_wish_to_say", "")]  # fmt: skip
    lines = []
    for voice, (client, gender, accent) in enumerate(who):
        for clip in range(2):
            name = f"common_voice_en_{voice}{clip}.mp3"
            put(home / "clips" / name, TONE, 32_000)
            said = f'"Oh", he said: {clip}\u2028"'  # a lone quotation mark, and what is no end of a line
            lines.append([client, name, "f00", said, "", "2", "0", "twenties", gender, accent, "", "en", ""])
    parts = {"validated": lines, "train": lines[:2], "dev": lines[2:4], "test": lines[4:], "other": lines[:1]}
    for part, some in parts.items():
        write(home / f"{part}.tsv", "\n".join("\t".join(line) for line in [HEADER.split(), *some]) + "\n")
    write(home / "clip_durations.tsv", "clip\tduration[ms]\n")
    return home


def test_common_voice(commonvoice):
    for place in (commonvoice, commonvoice.parent):
        clips = clip_table.read(place)
        assert list(clips.columns[:8]) == clip_table.COLUMNS
        assert clips.id.tolist() == [f"common_voice_en_{voice}{clip}" for voice in range(3) for clip in range(2)]
        assert clips.speaker.tolist() == [letter * 128 for letter in "aabbcc"]
        assert clips.gender.tolist() == ["male"] * 2 + ["female"] * 2 + [""] * 2
        assert clips.accent.unique().tolist() == ["England English", "Scottish English", ""]
        assert clips.text[0] == '"Oh", he said: 0 "'
        assert clips.age.unique() == ["twenties"]
        assert (clips.split == "").all()
        assert np.abs(clips.duration - 0.25).max() < 0.1


@pytest.mark.parametrize(
    ("part", "split"), [("train", "train"), ("dev", "validation"), ("test", "test"), ("other", "")]
)
def test_another_table_of_common_voice(commonvoice, part, split):
    clips = corpora.rows(commonvoice / f"{part}.tsv")
    assert clips.split.unique() == [split]
    assert len(clips) == (1 if part == "other" else 2)


def test_parts_of_common_voice_as_a_corpus(commonvoice, small_whisper, data, run_for):
    run = run_for(small_whisper, [commonvoice / f"{part}.tsv" for part in ("train", "dev")])
    step = cache.make(pipeline.clips(run, 0))
    heard = pipeline.table(run, step)
    assert heard.corpus.unique().tolist() == ["en-train", "en-dev"]
    assert heard.split.tolist() == ["train"] * 2 + ["validation"] * 2
    assert all(
        len(clip_table.samples(path)) == round(d * RATE) for path, d in zip(heard.path, heard.duration, strict=True)
    )
    assert step.facts["layouts"] == {"en-train": "commonvoice", "en-dev": "commonvoice"}


def test_common_voice_that_is_broken(commonvoice):
    (commonvoice / "validated.tsv").unlink()
    refused(commonvoice, "no validated.tsv", "dev.tsv")
    write(commonvoice / "validated.tsv", "client_id\tsentence\n")
    refused(commonvoice, "validated.tsv", "'path'", "client_id, sentence")
    shutil.copytree(commonvoice, commonvoice.parent / "de")
    refused(commonvoice.parent, "several corpora", "de, en")


# ------------------------------------------------------------------------------------------- ESC-50 and folders


def test_esc50(tmp_path):
    root = tmp_path / "downloads" / "ESC-50-master"
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold, (take, kind) in enumerate([("A", "dog"), ("B", "chirping_birds")], 1):
        put(root / "audio" / f"{fold}-100-{take}-{fold}.wav", np.tile(TONE, 10), 44_100)
        lines.append(f"{fold}-100-{take}-{fold}.wav,{fold},{fold},{kind},False,100,{take}")
    write(root / "meta" / "esc50.csv", "\n".join(lines) + "\n")
    for place in (root, root.parent, root / "meta" / "esc50.csv"):
        clips = clip_table.read(place)
        assert clips.id.tolist() == ["1-100-A-1", "2-100-B-2"]
        assert clips.category.tolist() == ["dog", "chirping_birds"]
        assert clips.fold.tolist() == ["1", "2"]
        assert (clips[["text", "speaker", "gender", "accent", "split"]] == "").all(axis=None)
    write(root / "meta" / "esc50.csv", "filename,fold\n")
    refused(root, "esc50.csv", "'category'", "filename, fold")


def test_a_bare_folder(tmp_path):
    for name in ("b/c/2.flac", "a.wav", "b/10.OGG", "b/1.aiff", "a.mp3", ".hidden/x.wav", "b/._1.aiff"):
        put((tmp_path / "folder" / name).with_suffix(Path(name).suffix.lower())).rename(tmp_path / "folder" / name)
    write(tmp_path / "folder" / "b" / "notes.txt", "not a sound")
    os.symlink(tmp_path / "folder", tmp_path / "folder" / "loop")
    clips = clip_table.read(tmp_path / "folder")
    assert clips.id.tolist() == ["a.mp3", "a.wav", "b/1.aiff", "b/10.OGG", "b/c/2.flac"]  # a.mp3 and a.wav would be one
    assert clips.folder.tolist() == [".", ".", "b", "b", "b/c"]
    before = clip_table.digest(tmp_path / "folder")
    assert before == clip_table.digest(shutil.copytree(tmp_path / "folder", tmp_path / "moved", symlinks=True))
    (tmp_path / "moved" / "a.wav").rename(tmp_path / "moved" / "z.wav")
    assert before != clip_table.digest(tmp_path / "moved"), "names are ids"


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_table_in_each_form(tmp_path, form):
    rows = [{"file_name": "a.wav", "text": "NA", "speaker": "7", "mood": "calm"},
            {"file_name": "d/b.wav", "text": "Größe \u2028 1", "speaker": "8", "mood": ""}]  # fmt: skip
    for row in rows:
        put(tmp_path / row["file_name"])
    if form == "csv":
        pd.DataFrame(rows).to_csv(tmp_path / "metadata.csv", index=False)
    elif form == "jsonl":
        rows[1]["mood"] = None
        write(tmp_path / "metadata.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    else:
        pd.DataFrame(rows).astype({"speaker": int}).to_parquet(tmp_path / "metadata.parquet")
    clips = clip_table.read(tmp_path)
    assert clips.text.tolist() == ["NA", "Größe   1"]
    assert clips.speaker.tolist() == ["7", "8"]
    assert clips.mood.tolist() == ["calm", ""]
    assert clips.id.tolist() == ["a", "d/b"]
    before = clip_table.digest(tmp_path)
    put(tmp_path / "d" / "b.wav", TONE / 2)
    assert clip_table.digest(tmp_path) != before


def test_a_table_in_each_side_of_a_split(tmp_path):
    for side, count in (("train", 2), ("val", 1), ("test", 1)):
        names = [f"{n}.wav" for n in range(count)]
        for name in names:
            put(tmp_path / side / name)
        write(tmp_path / side / "metadata.csv", "\n".join(["file_name", *names]) + "\n")
    clips = clip_table.read(tmp_path)
    assert clips.id.tolist() == ["train/0", "train/1", "test/0", "val/0"]
    assert clips.split.tolist() == ["train", "train", "test", "validation"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"file_name": "a.wav"\n', ["metadata.jsonl", "line 1", "not JSON"]),
        ("\n[1]\n", ["line 2", "not a JSON object"]),
        ('{"name": "a.wav"}\n', ["'file_name'", "it has name"]),
        ('{"file_name": "a\\u0000.wav"}\n', ["zero byte"]),
        ("", ["'file_name'"]),
    ],
)
def test_lines_that_are_not_what_they_should_be(tmp_path, text, words):
    write(tmp_path / "metadata.jsonl", text)
    refused(tmp_path, *words)


def test_a_table_that_is_no_parquet(tmp_path):
    write(tmp_path / "metadata.parquet", "PAR1 and nothing more")
    refused(tmp_path, "metadata.parquet", "not a parquet table")


# -------------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A local copy of a data set as the hub keeps it: parquet with an Audio column, two splits."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"audio": datasets.Audio(RATE), "text": datasets.Value("string"), "speaker_id": datasets.Value("int64"),
         "id": datasets.Value("string")}
    )  # fmt: skip
    sound = put(tmp_path / "x.flac").read_bytes()
    for split, count in (("train", 4), ("validation", 2)):
        table = pa.table(
            {"audio": [{"bytes": sound, "path": f"{n}.flac"} for n in range(count)], "text": ["A B"] * count,
             "speaker_id": [n // 2 for n in range(count)], "id": [f"{split}-{n}" for n in range(count)]}
        )  # fmt: skip
        (tmp_path / "copy" / "data").mkdir(parents=True, exist_ok=True)
        parquet.write_table(table.cast(features.arrow_schema), tmp_path / "copy" / "data" / f"{split}-0.parquet")
    return tmp_path / "copy"


def test_a_local_copy_of_a_hub_corpus(copy, small_whisper, data, run_for):
    for ending, count in (("", 4), (":default:validation", 2)):
        run = run_for(small_whisper, f"{copy}{ending}")
        step = cache.make(pipeline.clips(run, 0))
        heard = pipeline.table(run, step)
        assert len(heard) == count
        assert heard.corpus.unique() == ["copy"]
        assert heard.text.unique() == ["A B"]
        assert [len(clip_table.samples(path)) for path in heard.path] == [8_000] * count
    key = pipeline.fetched(str(copy)).key
    assert pipeline.fetched(str(shutil.copytree(copy, copy.parent / "moved"))).key == key
    (copy.parent / "moved" / "data" / "train-0.parquet").write_bytes(b"another")
    assert pipeline.fetched(str(copy.parent / "moved")).key != key
    refused(copy, "parquet tables", "hub.fetch")


@pytest.fixture
def voices(tmp_path, monkeypatch) -> Path:
    """Thirty clips of seven speakers as the hub keeps them: two files, row groups of four, each sound another."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder, rng = tmp_path / "voices", np.random.default_rng(0)
    folder.mkdir()
    sounds = [put(tmp_path / "x.flac", TONE[: 800 + 10 * n]).read_bytes() for n in range(30)]
    cast = rng.integers(0, 7, 30)
    columns = {
        "audio": [{"bytes": sound, "path": f"{n}.flac"} for n, sound in enumerate(sounds)],
        "sentence": [f"clip {n}" for n in range(30)],
        "client_id": [f"s{voice}" if voice else "" for voice in cast],
        "gender": [("female", "male")[voice % 2] for voice in cast],
        "accent": [("scottish", "indian", "")[voice % 3] for voice in cast],
    }
    kinds = datasets.Features({name: datasets.Value("string") for name in columns} | {"audio": datasets.Audio(RATE)})
    table = pa.table(columns).cast(kinds.arrow_schema)
    for number, part in enumerate((table.slice(0, 17), table.slice(17))):
        parquet.write_table(part, folder / f"train-{number}.parquet", row_group_size=4)
    return folder


def made(run, seed: int) -> tuple[pd.DataFrame, dict[str, bytes], cache.Step]:
    """The table of clips without paths, the bytes of each clip by name, and the step."""
    step = cache.make(pipeline.clips(run, seed))
    heard = pipeline.table(run, step)
    sounds = {Path(path).name: Path(path).read_bytes() for path in heard.path}
    return heard.drop(columns=["path", "corpus"]), sounds, step


CHOICES = [
    {},
    {"clips": 6},
    {"clips": 100},
    {"clips_per_speaker": 2},
    {"clips": 5, "clips_per_speaker": 1},
    {"only": ("gender=female", "accent=*")},
    {"only": ("accent=indian",), "clips": 3},
    {"balance": ("gender", "accent")},
    {"balance": ("accent",), "clips_per_group": 3},
    {"balance": ("gender",), "clips": 3, "clips_per_speaker": 2},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_same_clips_are_drawn_before_as_after_they_are_fetched(
    voices, small_whisper, data, run_for, tmp_path, choice
):
    hub.fetch(str(voices), tmp_path / "whole")
    for seed in (0, 1):
        right, sounds, _ = made(run_for(small_whisper, tmp_path / "whole", **choice), seed)
        found, copied, step = made(run_for(small_whisper, voices, **choice), seed)
        pd.testing.assert_frame_equal(found, right)
        assert copied == sounds
        (source,) = (data / "steps" / "corpus").glob(f"{step.manifest['needs']['voices']}/corpus/audio")
        assert {path.name for path in source.iterdir()} == set(sounds), "no other sound was fetched"


def test_one_key_for_one_choice(voices, small_whisper, data, run_for):
    def key(seed=0, **choice) -> str:
        (source,) = pipeline.clips(run_for(small_whisper, voices, **choice), seed).needs.values()
        return source.key

    whole = pipeline.fetched(str(voices)).key
    assert key() == key(1) == key(most_rejected=0.5, tokens=7) == whole
    choices = [key(seed, **choice) for choice in CHOICES[1:] for seed in (0, 1)]
    assert len({whole, *choices}) == len(choices) + 1
    assert key(clips=6) == key(clips=6, tokens=7, sites=("encoder.0.mlp",))


def test_what_was_fetched_is_fetched_again_where_it_was_thrown_away(voices, small_whisper, data, run_for):
    run = run_for(small_whisper, voices, clips=5)
    heard, sounds, step = made(run, 3)
    shutil.rmtree(data / "steps" / "corpus")
    again = pipeline.table(run, step)
    assert {Path(path).name: Path(path).read_bytes() for path in again.path} == sounds
    assert again.id.tolist() == heard.id.tolist()


def test_a_choice_of_nothing_is_said_before_anything_is_fetched(voices, small_whisper, data, run_for):
    for choice, words in (
        ({"only": ("accent=welsh",)}, ["only: no clip of", "voices is accent=welsh"]),
        ({"only": ("gender=x",), "balance": ("accent",)}, ["only: no clip of", "voices is gender=x"]),
        ({"balance": ("mood",)}, ["column 'mood'", "accent"]),
    ):
        with pytest.raises(clip_table.BadSpeech) as said:
            cache.make(pipeline.clips(run_for(small_whisper, voices, **choice), 0))
        for word in words:
            assert word in str(said.value)
        assert "\n" not in str(said.value) and ".work" not in str(said.value)
    assert not list((data / "steps").glob("corpus/*/corpus/audio"))
    assert not list((data / "steps").glob("corpus/.*.work/corpus/audio"))


FETCHING = """
import os, signal, sys
from whisper_sae import profiles, cache
from whisper_sae.data import hub
from whisper_sae.experiments import pipeline
run = profiles.choose(sys.argv[1])
left = int(sys.argv[2])
row = hub._row
def deadly(*args):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return row(*args)
hub._row = deadly
cache.make(pipeline.clips(run, 0))
"""


@pytest.mark.parametrize(
    "after", [pytest.param(10, marks=pytest.mark.slow), pytest.param(31, marks=pytest.mark.slow), 33]
)
def test_a_fetch_that_is_killed_leaves_nothing_that_is_taken_for_whole(
    voices, small_whisper, data, run_for, tmp_path, after
):
    """While the table is read (30 rows), or while sound is."""
    write(tmp_path / "x.toml", f'corpus = ["{voices}"]\nmodel = "{small_whisper}"\nclips = 4\n')
    asks = [sys.executable, "-c", FETCHING, str(tmp_path / "x.toml"), str(after)]
    around = os.environ | {"HF_HOME": str(tmp_path / "home")}
    assert subprocess.run(asks, env=around, capture_output=True).returncode == -signal.SIGKILL
    assert not [path for path in (data / "steps" / "corpus").iterdir() if not path.name.startswith(".")]
    run = profiles.choose(str(tmp_path / "x.toml"))
    (source,) = pipeline.clips(run, 0).needs.values()
    step = cache.make(source)
    step.verify()
    assert len(corpora.rows(step.path / "corpus")) == 4
    audio = {name for name in step.manifest["files"] if name.startswith("corpus/audio/")}
    assert set(step.manifest["files"]) == {"corpus/metadata.csv", *audio} and len(audio) == 4


@given(
    st.lists(st.tuples(*(st.sampled_from(["", "a", "b", "c"]) for _ in range(3))), min_size=1, max_size=30),
    st.integers(0, 12), st.integers(0, 3), st.integers(0, 4), st.sampled_from([(), ("gender",), ("gender", "accent")]),
    st.integers(0, 5),
)  # fmt: skip
def test_what_is_drawn_is_drawn_again(cast, most, per_speaker, per_group, by, seed):
    """From the clips that were fetched, all are drawn: which ones those are has been decided before."""
    clips = pd.DataFrame(cast, columns=["speaker", "gender", "accent"])
    clips.insert(0, "id", [f"clip {n}" for n in range(len(clips))])
    how = {"by": by, "per_group": per_group if by else 0, "per_speaker": per_speaker}
    drawn = clip_table.draw(clips, most, seed, **how)
    assert clip_table.draw(drawn, most, seed, **how).equals(drawn)


# ------------------------------------------------------------------------------------------- balanced samples


def cast_of(sizes: dict[str, tuple[int, int]]) -> pd.DataFrame:
    """Clips of each accent: so many speakers with so many clips each."""
    rows = [
        (f"{accent}{who}-{n}", f"{accent}{who}", accent, ("female", "male")[who % 2], 60.0, "one")
        for accent, (speakers, each) in sizes.items()
        for who in range(speakers)
        for n in range(each)
    ]
    return pd.DataFrame(rows, columns=["id", "speaker", "accent", "gender", "duration", "corpus"])


def test_25_clips_of_each_of_5_accents():
    clips = cast_of(
        {"us": (40, 5), "england": (20, 3), "india": (30, 1), "scotland": (5, 10), "canada": (25, 1), "": (9, 9)}
    )
    drawn = clip_table.draw(clips, 0, 0, by=("accent",), per_group=25)
    found = clip_table.balance(drawn, "accent").set_index("accent")
    assert found.clips.to_dict() == dict.fromkeys(["us", "england", "india", "scotland", "canada"], 25)
    assert found.speakers.to_dict() == {"us": 25, "england": 20, "india": 25, "scotland": 5, "canada": 25}
    assert clip_table.short(drawn, ("accent",), 25) == []
    assert drawn.equals(clip_table.draw(clips, 0, 0, by=("accent",), per_group=25))
    assert not drawn.equals(clip_table.draw(clips, 0, 1, by=("accent",), per_group=25))


def test_a_group_that_has_too_few_says_so():
    clips = cast_of({"us": (40, 5), "wales": (2, 3)})
    drawn = clip_table.draw(clips, 0, 0, by=("accent",), per_group=25)
    assert clip_table.short(drawn, ("accent",), 25) == ["one, wales: 6 of 25"]
    assert clip_table.draw(clips, 0, 0, by=("accent",)).accent.value_counts().to_dict() == {"us": 6, "wales": 6}
    assert clip_table.draw(clips, 8, 0, by=("accent",)).accent.value_counts().to_dict() == {"us": 4, "wales": 4}
    both = clip_table.draw(clips, 0, 0, by=("accent", "gender"), per_group=2, per_speaker=1)
    assert both.groupby(["accent", "gender"]).size().tolist() == [2, 2, 1, 1]
    with pytest.raises(clip_table.BadSpeech, match="column 'mood'"):
        clip_table.draw(clips, 0, 0, by=("mood",))


SIZES = st.dictionaries(
    st.sampled_from(["", "a", "b", "c"]), st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1
)


@given(SIZES, st.integers(0, 20), st.integers(0, 6), st.integers(0, 3), st.integers(0, 3))
def test_drawing_is_balanced_whatever_there_is(sizes, most, per_group, per_speaker, seed):
    clips = cast_of(sizes)
    drawn = clip_table.draw(clips, most, seed, by=("accent",), per_group=per_group, per_speaker=per_speaker)
    assert drawn.id.is_unique
    assert set(drawn.id) <= set(clips.id)
    assert "" not in set(drawn.accent)
    assert not most or len(drawn) <= most
    assert not per_speaker or drawn.empty or drawn.groupby("speaker").size().max() <= per_speaker
    counts, has = drawn.accent.value_counts(), clips[clips.accent != ""].groupby("accent").speaker.value_counts()
    can = has.clip(upper=per_speaker or None).groupby("accent").sum()
    limit = min([per_group or can.min(), *([max(1, most // len(can))] if most else [])]) if len(can) else 0
    if not most or most >= len(can):
        assert counts.to_dict() == can.clip(upper=limit).to_dict()


def test_only_what_is_wanted():
    clips = cast_of({"us": (4, 1), "wales": (2, 1), "": (3, 1)})
    assert clip_table.only(clips, ("accent=us", "accent=wales")).accent.unique().tolist() == ["us", "wales"]
    assert len(clip_table.only(clips, ("accent=*",))) == 6
    assert len(clip_table.only(clips, ("accent=us", "gender=male"))) == 2
    assert len(clip_table.only(clips, ("nothing=x",))) == 9
    assert len(clip_table.only(clips, ())) == 9


def test_a_profile_asks_for_a_balanced_sample(corpus, small_whisper, data, run_for, tmp_path):
    folder = corpus(voices=6, clips=4, splits=False, extra=True)
    wanted = {"only": ("mood=calm",), "balance": ("gender",), "clips_per_group": 5, "clips_per_speaker": 1}
    run = run_for(small_whisper, folder, **wanted)
    step = cache.make(pipeline.clips(run, 0))
    heard = pipeline.table(run, step)
    assert clip_table.balance(heard, "gender").clips.tolist() == [3, 3]
    assert heard.mood.unique() == ["calm"]
    assert step.facts["short"] == ["voices, female: 3 of 5", "voices, male: 3 of 5"]
    assert pipeline.clips(run, 1).key != pipeline.clips(run, 0).key
    (folder / "audio" / "v00_1.flac").unlink()  # not calm: it was never asked for
    assert pipeline.clips(run, 0).key == step.key


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"only": ("mood=angry",)}, ["only: no clip of", "mood=angry"]),
        ({"only": ("weather=fair",)}, ["only: 'weather=fair': no corpus has the column", "mood"]),
        ({"balance": ("accent",)}, ["balance: no clip of", "accent"]),
        ({"balance": ("weather",)}, ["column 'weather'", "gender"]),
    ],
)
def test_what_nobody_can_give(corpus, small_whisper, data, run_for, asked, words):
    with pytest.raises(clip_table.BadSpeech) as said:
        cache.make(pipeline.clips(run_for(small_whisper, corpus(extra=True), **asked), 0))
    for word in words:
        assert word in str(said.value)


# -------------------------------------------------------------------------------------------------- parsers

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=8))
def test_a_csv_table_is_read_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["one", "two", "three"], *rows])
    within = any("," in cell and cell.splitlines() not in ([], [cell]) for row in rows for cell in row)
    try:
        assert tables.read(path).to_numpy().tolist() == rows
    except tables.BadSpeech as error:
        assert within and "looks like a row of its own" in str(error)


ROWS = [[f"audio/{n}.wav", f"v{n // 3}", f"these are the words of clip {n}"] for n in range(12)]


@given(st.data(), st.integers(1, 3))
def test_stray_quotation_marks_lose_no_row_and_give_none_another_speaker(tmp_path_factory, data, count):
    text = "file_name,speaker,text\n" + "".join(",".join(row) + "\n" for row in ROWS)
    for _ in range(count):
        at = data.draw(st.integers(0, len(text) - 1))
        text = text[:at] + '"' + text[at:]
    path = tmp_path_factory.mktemp("quotes") / "metadata.csv"
    path.write_text(text)
    try:
        found = tables.read(path)
        tables.need(path, found, "file_name")
    except tables.BadSpeech as error:
        assert str(path) in str(error) and str(error).isprintable()
    else:
        assert [[cell.replace('"', "") for cell in row] for row in found.to_numpy().tolist()] == ROWS


@given(st.integers(1, 560))
def test_of_a_table_that_was_cut_no_label_is_lost_unnoticed(tmp_path_factory, left):
    path = tmp_path_factory.mktemp("cut") / "metadata.csv"
    text = "file_name,text,speaker\n" + "".join(f"{file},{words},{who}\n" for file, who, words in ROWS)
    path.write_text(text[:left])
    try:
        found = tables.read(path)
        tables.need(path, found, "speaker")
    except tables.BadSpeech as error:
        assert str(error).isprintable()
    else:
        assert (found.speaker != "").all() or text[:left].endswith(",")


@given(
    st.binary(max_size=200), st.sampled_from(["metadata.csv", "metadata.jsonl", "metadata.parquet", "validated.tsv"])
)
def test_whatever_a_table_holds_it_is_read_or_refused_in_one_line(tmp_path_factory, content, name):
    folder = tmp_path_factory.mktemp("any")
    (folder / name).write_bytes(content)
    try:
        clips = corpora.rows(folder)
    except clip_table.BadSpeech as error:
        assert str(error).isprintable()
    else:
        assert list(clips.columns[:7]) == corpora.COLUMNS
        assert all(Path(path).is_relative_to(folder) for path in clips.path)


@given(st.data())
def test_of_a_damaged_jsonl_table_no_row_is_lost_unnoticed(tmp_path_factory, data):
    lines = [json.dumps({"file_name": file, "speaker": who, "text": words}) for file, who, words in ROWS]
    path = tmp_path_factory.mktemp("jsonl") / "metadata.jsonl"
    inserts = [b"\0", b'"', b"\n", b"}", b'{"file_name": "b.wav"}', b', "speaker": "other"']
    path.write_bytes(damaged(data, "\n".join(lines).encode(), inserts))
    try:
        found = tables.read(path)
    except tables.BadSpeech as error:
        assert str(path) in str(error) and str(error).isprintable()
    else:
        assert len(found) == sum(bool(line.strip()) for line in path.read_text().splitlines())


def test_a_field_that_a_line_of_jsonl_has_twice_is_refused(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"file_name": "a.wav", "speaker": "x", "speaker": "y"}\n')
    with pytest.raises(tables.BadSpeech, match=r"line 1: not JSON: field 'speaker' is there twice"):
        tables.read(path)


@given(st.text(max_size=200))
def test_the_cast_of_librispeech_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("cast") / "SPEAKERS.TXT"
    path.write_bytes(text.encode())
    try:
        assert all(isinstance(gender, str) for gender in corpora._cast(path).values())
    except clip_table.BadSpeech as error:
        assert "SPEAKERS.TXT" in str(error)


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(NAMES | st.sampled_from(["..", "../x", "a/../../x", "/etc/passwd", ".", "a/..", "./../b.wav"]))
def test_no_name_leads_out_of_a_corpus(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp() / "corpus"
    try:
        path = corpora._path_of(folder, folder / "metadata.csv", name)
    except clip_table.BadSpeech:
        return
    assert Path(os.path.normpath(path)).is_relative_to(folder)
    assert path != str(folder)


# ------------------------------------------------------------------------------------------------ real speech


def test_real_speech_in_every_layout(shared, tmp_path, small_whisper, data, run_for):
    """Recorded clips, laid out as the releases are: the sound is what the audiofolder gives."""
    home = shared / "speech" / "librispeech-sample"
    given = clip_table.read(home).head(6)
    tree, voice = tmp_path / "LibriSpeech", tmp_path / "en"
    cast, lines = ["; id | sex"], ["client_id\tpath\tsentence\tgender"]
    for clip in given.itertuples():
        speaker, chapter, _ = Path(clip.path).stem.split("-")
        target = tree / "train-clean-100" / speaker / chapter / Path(clip.path).name
        target.parent.mkdir(parents=True)
        shutil.copy(clip.path, target)
        write(target.with_name(f"{speaker}-{chapter}.trans.txt"), f"{target.stem} {clip.text}\n")
        cast.append(f"{speaker} | {clip.gender[0].upper()} | train-clean-100 | 1 | A Reader")
        sound = clip_table.samples(clip.path)
        put(voice / "clips" / f"{target.stem}.mp3", sound)
        gender = {"male": "male_masculine", "female": "female_feminine"}[clip.gender]
        lines.append(f"{clip.speaker}\t{target.stem}.mp3\t{clip.text}\t{gender}")
    write(tree / "SPEAKERS.TXT", "\n".join(cast) + "\n")
    write(voice / "validated.tsv", "\n".join(lines) + "\n")
    bare = tmp_path / "bare"
    shutil.copytree(tree / "train-clean-100", bare, ignore=shutil.ignore_patterns("*.txt"))
    run = run_for(small_whisper, [tree, voice, bare])
    step = cache.make(pipeline.clips(run, 0))
    assert step.facts["layouts"] == {"LibriSpeech": "librispeech", "en": "commonvoice", "bare": "files"}
    heard = pipeline.table(run, step)
    parts = {
        name: part.assign(stem=part.path.map(lambda path: Path(path).stem)) for name, part in heard.groupby("corpus")
    }
    for clip in given.itertuples():
        for name, part in parts.items():
            row = part[part.stem == Path(clip.path).stem].iloc[0]
            assert row.duration == pytest.approx(clip.duration, abs=0.1)
            assert (row.gender, row.text) == ((clip.gender, clip.text) if name != "bare" else ("", ""))
            if name != "en":
                np.testing.assert_array_equal(clip_table.samples(row.path), clip_table.samples(clip.path))


def test_every_real_corpus_is_balanced_as_asked(shared):
    accents = corpora.rows(shared / "speech" / "speech-accent-archive-8k")
    drawn = clip_table.draw(accents.assign(duration=0.0), 0, 0, by=("accent",), per_group=4)
    assert clip_table.balance(drawn, "accent").clips.tolist() == [4] * accents.accent.nunique()
    children = corpora.rows(shared / "speech" / "speechocean762")
    grown = clip_table.only(children, ("age_group=adult",))
    assert 0 < len(grown) < len(children)


def test_a_table_may_be_named_in_a_profile(tmp_path):
    write(tmp_path / "cv" / "en" / "train.tsv", "client_id\tpath\tsentence\n")
    write(tmp_path / "mine.toml", 'corpus = ["cv/en/train.tsv"]\nonly = ["gender=*"]\n')
    run = profiles.choose(str(tmp_path / "mine.toml"))
    assert run.corpus == (str(tmp_path / "cv" / "en" / "train.tsv"),)
    assert run.only == ("gender=*",)


# ------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("accents", "first"),
    [
        ("", ""),
        ("England English", "England English"),
        ("United States English,Midwestern, slight drawl", "United States English"),
        (" Canadian English | English", "Canadian English"),
        (
            "India and South Asia (India, Pakistan, Sri Lanka),Bengali",
            "India and South Asia (India, Pakistan, Sri Lanka)",
        ),
        ("Southern African (South Africa, Zimbabwe, Namibia)", "Southern African (South Africa, Zimbabwe, Namibia)"),
    ],
)
def test_the_first_accent_of_a_list_counts(accents, first):
    assert corpora.first_accent(accents) == first


def test_labels_have_one_spelling_everywhere(tmp_path):
    rows = ["Female,Scottish", "female , scottish", "FEMALE,Scottish", "M,unknown", "male,-"]
    table = "\n".join(["file_name,gender,accent", *(f"{n}.wav,{row}" for n, row in enumerate(rows))])
    (tmp_path / "metadata.csv").write_text(table)
    clips = corpora.rows(tmp_path)
    assert clips.gender.tolist() == ["female"] * 3 + ["male"] * 2
    assert clips.accent.tolist() == ["Scottish"] * 3 + ["", ""]
    assert len(clip_table.only(clips.assign(id=""), ("accent=SCOTTISH",))) == 3
