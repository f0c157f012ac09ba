"""A corpus of the hub becomes a directory that `speech` reads, its sound copied byte for byte."""

import io
import os
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
from pyarrow import parquet

from whisper_sae import hub, speech

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
    clips = speech.read(tmp_path / "out")
    assert clips.text.tolist() == [f"HE SAID, {n}" for n in range(5)]
    assert clips.speaker.tolist() == ["84", "84", "85", "85", "86"]
    assert clips.gender.tolist() == ["female", "male", "female", "male", "female"]
    assert clips.id_given.tolist() == rows(5)["id"]
    assert clips.duration.tolist() == [(8_000 + 160 * n) / 16_000 for n in range(5)]
    for n, path in enumerate(clips.path):
        with open(path, "rb") as file:
            assert file.read() == rows(5)["audio"][n]["bytes"]
        assert len(speech.samples(path)) == 8_000 + 160 * n


def test_so_many_clips(dataset, tmp_path):
    seen = []
    folder = dataset()

    def progress(rows):
        for row in rows:
            seen.append(row["id"])
            yield row

    assert hub.fetch(str(folder), tmp_path / "out", 2, progress) == {"clips": 2}
    assert len(speech.read(tmp_path / "out")) == len(list((tmp_path / "out" / "audio").iterdir())) == len(seen) == 2


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


def test_fetching_again_writes_the_same(dataset, tmp_path):
    folder = dataset()
    hub.fetch(str(folder), tmp_path / "one")
    hub.fetch(str(folder), tmp_path / "two", 3)  # a run that was interrupted ...
    hub.fetch(str(folder), tmp_path / "two")  # ... and begins again in the same folder
    assert speech.digest(tmp_path / "one") == speech.digest(tmp_path / "two")
    assert len(list((tmp_path / "two" / "audio").iterdir())) == 5


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
from pathlib import Path
from whisper_sae import hub, model
for ask, kind in [
    (lambda: hub.fetch("openslr/librispeech_asr:clean:validation", Path(sys.argv[1])), hub.BadCorpus),
    (lambda: model.load("openai/whisper-tiny", "cpu"), model.BadModel),
    (lambda: model.identity("openai/whisper-tiny"), model.BadModel),
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
