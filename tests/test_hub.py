"""A corpus of the hub becomes a directory that `speech` reads, its sound copied byte for byte."""

import io
import os
import subprocess
import sys
import types

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
from pyarrow import parquet

from whisper_sae.data import clip_table, corpora, hub

FEATURES = datasets.Features(
    {
        "file": datasets.Value("string"),
        "audio": datasets.Audio(16_000),
        "text": datasets.Value("string"),
        "speaker_id": datasets.Value("int64"),
        "gender": datasets.ClassLabel(names=["female", "male"]),
        "id": datasets.Value("string"),
    }
)


def flac(samples: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(samples) / 10) / 2, 16_000, format="FLAC")
    return file.getvalue()


def rows(count: int) -> dict:
    return {
        "file": [f"/home/them/{n}.flac" for n in range(count)],
        "audio": [{"bytes": flac(8_000 + 160 * n), "path": f"{n}.flac"} for n in range(count)],
        "text": [f"HE SAID, {n}" for n in range(count)],
        "speaker_id": [84 + n // 2 for n in range(count)],
        "gender": [n % 2 for n in range(count)],
        "id": [f"84-121123-{n:04d}/x" for n in range(count)],
    }


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Writes a data set as the hub keeps LibriSpeech, parquet that declares its features: `dataset(name, splits)`."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(name="ds", splits=None, features=FEATURES, **columns):
        folder = tmp_path / name
        folder.mkdir()
        for split, count in (splits or {"train": 5}).items():
            given = {key: value for key, value in (rows(count) | columns).items() if key in features}
            table = pa.table(given).select(list(features)).cast(features.arrow_schema)
            parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
        return folder

    return write


def test_a_fetched_corpus_is_one_that_speech_reads(dataset, tmp_path):
    told = hub.fetch(str(dataset()), tmp_path / "out")
    assert told == {"clips": 5}
    clips = clip_table.read(tmp_path / "out")
    assert clips.text.tolist() == [f"HE SAID, {n}" for n in range(5)]
    assert clips.speaker.tolist() == ["84", "84", "85", "85", "86"]
    assert clips.gender.tolist() == ["female", "male", "female", "male", "female"]
    assert clips.id_given.tolist() == rows(5)["id"]
    assert clips.duration.tolist() == [(8_000 + 160 * n) / 16_000 for n in range(5)]
    for n, path in enumerate(clips.path):
        with open(path, "rb") as file:
            assert file.read() == rows(5)["audio"][n]["bytes"]
        assert len(clip_table.samples(path)) == 8_000 + 160 * n


def test_progress_is_told_of_each_clip(dataset, tmp_path):
    seen = []

    def progress(clips):
        for clip in clips:
            seen.append(clip)
            yield clip

    hub.fetch(str(dataset()), tmp_path / "all", None, progress)
    assert len(seen) == 5
    hub.fetch(str(tmp_path / "ds"), tmp_path / "some", lambda told: [1, 4], progress)
    assert len(seen) == 5 + 5 + 2, "all that is told, and two clips"


def test_configuration_and_split(dataset, tmp_path):
    folder = dataset(splits={"train": 5, "validation": 3})
    assert hub.fetch(f"{folder}:default:validation", tmp_path / "a") == {"clips": 3}
    assert hub.fetch(f"{folder}::validation", tmp_path / "b") == {"clips": 3}
    assert hub.fetch(f"{folder}", tmp_path / "c") == {"clips": 5}


def test_a_directory_with_colons_in_its_name(dataset, tmp_path):
    assert hub.fetch(str(dataset("a:b:c")), tmp_path / "out") == {"clips": 5}


def test_a_column_that_is_called_file_name_does_not_name_the_file(dataset, tmp_path):
    features = datasets.Features(FEATURES | {"file_name": datasets.Value("string")})
    folder = dataset(features=features, file_name=["../../etc/passwd"] * 5)
    hub.fetch(str(folder), tmp_path / "out")
    names = pd.read_csv(tmp_path / "out" / "metadata.csv").file_name
    assert names.str.startswith("audio/").all()
    assert names.is_unique


def interrupted(after: int):
    """A `progress` that is interrupted when so many rows have gone by."""

    def progress(rows):
        for number, row in enumerate(rows):
            if number == after:
                raise KeyboardInterrupt
            yield row

    return progress


def test_fetching_again_writes_the_same(dataset, tmp_path):
    folder = dataset()
    hub.fetch(str(folder), tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):  # a run that was interrupted ...
        hub.fetch(str(folder), tmp_path / "two", None, interrupted(3))
    assert not (tmp_path / "two" / "metadata.csv").exists()
    hub.fetch(str(folder), tmp_path / "two")  # ... and begins again in the same folder
    assert clip_table.digest(tmp_path / "one") == clip_table.digest(tmp_path / "two")
    assert len(list((tmp_path / "two" / "audio").iterdir())) == 5


# ----------------------------------------------------------------------------------------- some of the clips


@pytest.fixture
def parted(dataset):
    """Two files of three row groups each, of 3, 3 and 2 rows: its directory."""
    folder = dataset()
    (folder / "train-00000-of-00001.parquet").unlink()
    table = pa.table(rows(16)).select(list(FEATURES)).cast(FEATURES.arrow_schema)
    for number in range(2):
        part = table.slice(8 * number, 8)
        parquet.write_table(part, folder / f"train-{number:05d}-of-00002.parquet", row_group_size=3)
    return folder


def copied(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "audio").iterdir())}


def spoil_sound(folder, file: int, group: int) -> None:
    """Overwrite where a row group keeps its bytes of sound, so that who reads them must notice."""
    path = folder / f"train-{file:05d}-of-00002.parquet"
    columns = parquet.read_metadata(path).row_group(group)
    (column,) = (c for c in map(columns.column, range(columns.num_columns)) if c.path_in_schema == "audio.bytes")
    begin = min(at for at in (column.dictionary_page_offset, column.data_page_offset) if at)
    content = bytearray(path.read_bytes())
    content[begin : begin + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)


@pytest.mark.parametrize("wanted", [[0], [15], [4, 3], [2, 3, 9, 15], list(range(16))])
def test_what_is_chosen_is_what_it_is_in_the_whole(parted, tmp_path, wanted):
    assert hub.fetch(str(parted), tmp_path / "whole") == {"clips": 16}
    assert hub.fetch(str(parted), tmp_path / "some", lambda told: wanted) == {"clips": len(wanted)}
    whole, some = copied(tmp_path / "whole"), copied(tmp_path / "some")
    assert some == {name: sound for name, sound in whole.items() if hub.number_of(name) in wanted}
    lines = [(tmp_path / name / "metadata.csv").read_text().splitlines() for name in ("whole", "some")]
    assert lines[1] == [lines[0][0], *(lines[0][1 + number] for number in sorted(wanted))]
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["audio", "metadata.csv"]


def test_it_is_chosen_from_the_table_of_all(parted, tmp_path):
    hub.fetch(str(parted), tmp_path / "whole")
    seen = []
    hub.fetch(str(parted), tmp_path / "some", lambda told: seen.append(corpora.rows(told)) or [3])
    right = corpora.rows(tmp_path / "whole")
    assert seen[0].drop(columns="path").equals(right.drop(columns="path"))
    assert [hub.number_of(path) for path in seen[0].path] == list(range(16))


def test_no_sound_is_read_of_a_row_group_without_a_wanted_clip(parted, tmp_path):
    right = rows(16)["audio"]
    for file, group in ((0, 0), (0, 2), (1, 1)):
        spoil_sound(parted, file, group)
    hub.fetch(str(parted), tmp_path / "some", lambda told: [3, 5, 8, 15])
    assert sorted(copied(tmp_path / "some").values()) == sorted(right[n]["bytes"] for n in (3, 5, 8, 15))
    for number in (1, 6, 12):
        with pytest.raises(hub.BadCorpus, match="ds': cannot be fetched"):
            hub.fetch(str(parted), tmp_path / f"spoilt {number}", lambda told, number=number: [number])


def test_features_that_the_readme_declares(parted, tmp_path):
    """As the releases on the hub have them: a configuration whose columns its README names."""
    declared = "\n".join(f"  - {{name: {name}, dtype: string}}" for name in ("file", "text", "id"))
    (parted / "README.md").write_text(f"""---
dataset_info:
  config_name: clean
  features:
{declared}
  - {{name: audio, dtype: {{audio: {{sampling_rate: 16000}}}}}}
  - {{name: speaker_id, dtype: int64}}
  - {{name: gender, dtype: {{class_label: {{names: {{"0": female, "1": male}}}}}}}}
configs:
- config_name: clean
  data_files:
  - {{split: validation, path: train-*}}
---
""")
    hub.fetch(f"{parted}:clean:validation", tmp_path / "some", lambda told: [1, 10])
    assert corpora.rows(tmp_path / "some").gender.tolist() == ["male", "female"]
    assert list(copied(tmp_path / "some").values()) == [rows(16)["audio"][n]["bytes"] for n in (1, 10)]


def test_sound_alone_is_chosen_by_number(dataset, tmp_path):
    folder = dataset(features=datasets.Features({"audio": datasets.Audio(16_000)}))
    seen = []
    hub.fetch(str(folder), tmp_path / "out", lambda told: seen.append(corpora.rows(told)) or [0, 3])
    assert [hub.number_of(path) for path in seen[0].path] == list(range(5))
    assert list(copied(tmp_path / "out").values()) == [rows(5)["audio"][n]["bytes"] for n in (0, 3)]


def test_a_format_whose_columns_cannot_be_read_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "ds").mkdir()
    table = pa.table({key: rows(5)[key] for key in FEATURES}).cast(FEATURES.arrow_schema)
    for number in range(2):
        with pa.ipc.new_stream(tmp_path / "ds" / f"train-{number}.arrow", table.schema) as out:
            out.write_table(table)
    hub.fetch(str(tmp_path / "ds"), tmp_path / "out", lambda told: [1, 7, 9])
    assert list(copied(tmp_path / "out").values()) == [rows(5)["audio"][n]["bytes"] for n in (1, 2, 4)]


@pytest.mark.parametrize(("change", "words"), [("order", "row 3 is another"), ("fewer", "fewer rows")])
def test_a_corpus_that_changes_meanwhile_is_noticed(parted, tmp_path, change, words):
    path = parted / "train-00001-of-00002.parquet"

    def choose(told):
        table = parquet.read_table(path)
        if change == "order":  # the second file's rows come first
            path.rename(parted / "train-00000-of-00002.parquet")
            parquet.write_table(table, path, row_group_size=3)
        else:
            parquet.write_table(table.slice(0, 5), path, row_group_size=3)
        return [3, 14]

    with pytest.raises(hub.BadCorpus, match=words) as said:
        hub.fetch(str(parted), tmp_path / "out", choose)
    assert "fetch it again" in str(said.value) and "\n" not in str(said.value)
    assert not (tmp_path / "out" / "metadata.csv").exists()


@pytest.mark.parametrize("after", [0, 7, 16, 18])
def test_a_choice_that_was_interrupted_begins_again(parted, tmp_path, after):
    """While the table is read (16 rows), or the sound."""

    def choose(told):
        return [2, 7, 12]

    hub.fetch(str(parted), tmp_path / "right", choose)
    seen = 0

    def progress(rows):
        nonlocal seen
        for row in rows:
            if seen == after:
                raise KeyboardInterrupt
            seen += 1
            yield row

    with pytest.raises(KeyboardInterrupt):
        hub.fetch(str(parted), tmp_path / "out", choose, progress)
    assert not (tmp_path / "out" / "metadata.csv").exists()
    hub.fetch(str(parted), tmp_path / "out", choose)
    assert clip_table.digest(tmp_path / "out") == clip_table.digest(tmp_path / "right")
    assert copied(tmp_path / "out") == copied(tmp_path / "right")


def test_what_the_choice_says_is_left_as_it_is(parted, tmp_path):
    def choose(told):
        raise clip_table.BadSpeech("only: no such clip")

    with pytest.raises(clip_table.BadSpeech, match=r"^only: no such clip$"):
        hub.fetch(str(parted), tmp_path / "out", choose)


# ---------------------------------------------------------------------------------------------- what is wrong


SILENT = datasets.Features({key: kind for key, kind in FEATURES.items() if key != "audio"})
EMPTY = {"audio": [{"bytes": None, "path": f"{n}.flac"} for n in range(5)]}


@pytest.mark.parametrize(
    ("made", "asked", "words"),
    [
        ({}, "ds:default:tset", ["ds:default:tset", "tset", "train"]),
        ({}, "ds:clean:train", ["ds:clean:train", "clean", "default"]),
        ({}, "nowhere", ["nowhere"]),
        ({"features": SILENT}, "ds", ["ds", "no column of sound", "file, text, speaker_id"]),
        (EMPTY, "ds", ["ds", "row 0", "no bytes", "'audio'"]),
        ({"splits": {"train": 0}}, "ds", ["ds"]),
    ],
)
def test_what_cannot_be_fetched_is_named_in_one_line(dataset, tmp_path, made, asked, words):
    dataset(**made)
    with pytest.raises(hub.BadCorpus) as said:
        hub.fetch(str(tmp_path / asked), tmp_path / "out")
    assert "\n" not in str(said.value)
    for word in words:
        assert word in str(said.value)


OFFLINE = """
import sys
import types
from pathlib import Path
from whisper_sae.data import hub
from whisper_sae.model import whisper_model
for ask, kind in [
    (lambda: hub.fetch("openslr/librispeech_asr:clean:validation", Path(sys.argv[1])), hub.BadCorpus),
    (lambda: whisper_model.load("openai/whisper-tiny", "cpu"), whisper_model.BadModel),
    (lambda: whisper_model.identity("openai/whisper-tiny"), whisper_model.BadModel),
]:
    try:
        ask()
    except kind as error:
        print(error)
"""


def test_a_hub_out_of_reach_is_one_line_with_the_way_out(tmp_path):
    """In a process of its own, which has been offline from its beginning and has nothing cached."""
    told = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path / "out")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    corpus, whisper, identity = told.stdout.splitlines()
    assert "'openslr/librispeech_asr:clean:validation'" in corpus
    for line in (whisper, identity):
        assert line.startswith("openai/whisper-tiny: ")
    for line in (corpus, whisper, identity):
        assert "give a local directory" in line
    assert not (tmp_path / "out").exists()


def test_all_is_read_from_the_commit_that_the_hub_is_at(monkeypatch, tmp_path):
    """Without a revision the newest commit, with one its commit; where the hub does not answer, what was asked for."""
    commits, opened = {None: "c0ffee", "v1": "5eed"}, []

    def info(self, name, revision=None):
        if name == "nobody/away":
            raise ConnectionError
        return types.SimpleNamespace(sha=commits[revision])

    def load(**options):
        opened.append(options.get("revision"))
        raise ValueError("no more of it is needed")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", info)
    monkeypatch.setattr("datasets.load_dataset", load)
    for corpus in ("some/voices", "some/voices@v1:clean:test", "nobody/away", "nobody/away@v1"):
        with pytest.raises(hub.BadCorpus, match="no more of it is needed"):
            hub.fetch(corpus, tmp_path / "out")
    assert opened == ["c0ffee", "5eed", None, "v1"]


def test_a_copy_of_librispeech_has_its_readers_gender(dataset, tmp_path):
    kinds = FEATURES.copy()
    del kinds["gender"]
    kinds["chapter_id"] = datasets.Value("int64")
    told = {"id": [f"{84 + n // 2}-121123-{n:04d}" for n in range(5)], "chapter_id": [121123] * 5}
    hub.fetch(str(dataset(features=kinds, **told)), tmp_path / "out")
    clips = corpora.rows(tmp_path / "out")
    assert clips.gender.tolist() == ["female", "female", "male", "male", ""], "86 is nobody of the list"
    assert set(clips.gender_from[:4]) == {"LibriSpeech's list of readers"}
    hub.fetch(str(dataset("other", features=kinds, **told | {"id": [f"x{n}" for n in range(5)]})), tmp_path / "no")
    assert (corpora.rows(tmp_path / "no").gender == "").all() and "gender_from" not in corpora.rows(tmp_path / "no")
