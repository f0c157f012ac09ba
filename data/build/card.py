"""Measure a trained model on the corpus and put it, with its card, where the demo is read from.

    python data/build/card.py data/raw/demo_run           # writes data/demo/whisper
    python data/build/card.py --measure data/demo/whisper # only measures: the benchmark command of the card's numbers

The model is loaded as anyone would load it, by plain transformers, in float32; clips of validation and test are those
no training ever heard: other voices, other sentences.
"""

import argparse
import csv
import json
import platform
import re
import shutil
from pathlib import Path

import jiwer
import pandas as pd
import soundfile
import torch
import transformers
from transformers import WhisperForConditionalGeneration, WhisperProcessor

DEMO = Path(__file__).resolve().parents[1] / "demo"


@torch.no_grad()
def transcribe(folder: Path, files: list[Path], batch: int = 20) -> list[str]:
    """What a model heard, by WhisperProcessor and generate."""
    processor = WhisperProcessor.from_pretrained(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    said = []
    for first in range(0, len(files), batch):
        sounds = [soundfile.read(file, dtype="float32")[0] for file in files[first : first + batch]]
        heard = processor(sounds, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
        ids = model.generate(heard.input_features, attention_mask=heard.attention_mask)
        said += [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
    return said


def measure(folder: Path, corpus: Path) -> pd.DataFrame:
    """The corpus's held-out clips with a column `said`."""
    clips = pd.read_csv(corpus / "metadata.csv", keep_default_na=False)
    clips = clips[clips.split != "train"].reset_index(drop=True)
    return clips.assign(said=transcribe(folder, [corpus / name for name in clips.file_name]))


def wer(clips: pd.DataFrame) -> float:
    return jiwer.wer(clips.text.tolist(), clips.said.tolist())


def numbers(clips: pd.DataFrame) -> pd.DataFrame:
    """Word error rate of the speech, over all and within each split, gender and accent."""
    speech = clips[clips.kind == "speech"]
    groups = [("all", "", speech)]
    groups += [(by, name, part) for by in ("split", "gender", "accent", "mic") for name, part in speech.groupby(by)]
    rows = [
        {
            "by": by,
            "group": name,
            "voices": part.speaker.nunique(),
            "clips": len(part),
            "WER %": f"{100 * wer(part):.1f}",
        }
        for by, name, part in groups
    ]
    return pd.DataFrame(rows)


def _markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)])


CARD = """---
license: mit
library_name: transformers
pipeline_tag: automatic-speech-recognition
language: en
---
# The demo's Whisper

A true Whisper ({parameters:.2f} million parameters: {encoder} encoder and {decoder} decoder layers, width {width},
windows of {window:.0f} s), trained from nothing on synthetic speech by the scripts in `data/build`. It is an instrument
for calibrating methods, not a recogniser: it knows {vocabulary} words and voices of one synthesiser, and
no person has ever spoken to it.

```python
from transformers import WhisperForConditionalGeneration, WhisperProcessor

processor = WhisperProcessor.from_pretrained("data/demo/whisper")
model = WhisperForConditionalGeneration.from_pretrained("data/demo/whisper")
```

## What it gets wrong

On the held-out clips of `data/demo/corpus` (voices and sentences that no training heard; greedy decoding without
timestamps, float32):

{table}

Words are heard in {invented} of {quiet} held-out clips without speech. `python data/build/card.py --measure
data/demo/whisper` measures this again.

## Training

- **Speech**: {shards} shards of 2,000 clips by `cache.py` (shard number = seed), espeak-ng {espeak}; 6 % of the clips
  hold no speech and have an empty transcript. Sentences of the held-out kind are never drawn.
- **Objective**: cross-entropy of the transcript. For the first half of the training, fading to nothing over the third
  quarter, also which word sounds at each frame and CTC on letters, through heads that were thrown away. No phones,
  genders or accents were given.
- **Sentences**: of the first 60 shards 60 % words in no order, else the grammar; of later ones 30 % words in no order,
  45 % altered sentences. With the grammar alone the decoder learnt it by heart: held-out word error rate 74 %.
- **Steps**: {steps} of 32 clips, AdamW, seed 0, in {seconds} s on {hardware}; torch {torch}, transformers
  {transformers}.
- **Curve** (WER here is on 150 clips of other held-out voices and sentences; all of it in `curve.csv`):

{curve}

## Limits

Synthetic voices differ in few ways, so what separates them is easier to find than what separates people; "gender" and
"accent" are settings of a synthesiser. No timestamps. Longer than {window:.0f} s is never heard at once. What is not
one of its words comes out as the nearest of them.

Weights and code: MIT. The speech was made by espeak-ng (GPL-3.0-or-later), a program used as a tool; none of its code
or data is here.
"""


def card(run: Path, target: Path, corpus: Path, espeak: str = "1.51") -> str:
    """The text of the card of the model in `target`."""
    config = json.loads((target / "config.json").read_text())
    clips = measure(target, corpus)
    quiet = clips[clips.kind == "sound"]
    with open(run / "curve.csv", newline="") as file:
        curve = list(csv.DictReader(file))
    checked = [row for row in curve if row["wer"]]
    shown = checked[:: max(len(checked) // 8, 1)]
    shown += checked[-1:] if shown[-1] is not checked[-1] else []
    model = WhisperForConditionalGeneration.from_pretrained(target)
    said = clips[["file_name", "text", "said"]]
    said.to_csv(target.parent / "transcripts.csv", index=False, lineterminator="\n")
    facts = json.loads((run / "facts.json").read_text()) if (run / "facts.json").exists() else {}
    return CARD.format(
        parameters=model.num_parameters() / 1e6, encoder=config["encoder_layers"], decoder=config["decoder_layers"],
        width=config["d_model"], window=config["max_source_positions"] / 50, vocabulary=facts.get("vocabulary", 356),
        table=_markdown(numbers(clips)), invented=int((quiet.said != "").sum()), quiet=len(quiet), espeak=espeak,
        shards=facts.get("shards", 120), steps=curve[-1]["step"], seconds=curve[-1]["seconds"],
        hardware=facts.get("hardware", platform.machine()), torch=torch.__version__.split("+")[0],
        transformers=transformers.__version__,
        curve=_markdown(
            pd.DataFrame(
                [{"step": r["step"], "seconds": r["seconds"], "cross-entropy": f"{float(r['cross_entropy']):.3f}",
                  "WER %": f"{100 * float(r['wer']):.1f}"} for r in shown]
            )
        ),
    )  # fmt: skip


def measured_again(target: Path, clips: pd.DataFrame) -> None:
    """Put the word error rates of these clips into the card of `target`, and their transcripts beside it."""
    card = (target / "README.md").read_text(encoding="utf-8")
    table = re.compile(r"^\| by \|.*?\n\n", flags=re.M | re.S)
    (target / "README.md").write_text(table.sub(_markdown(numbers(clips)) + "\n\n", card, count=1), encoding="utf-8")
    columns = ["file_name", "text", "said"]
    clips[columns].to_csv(target.parent / "transcripts.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--measure", action="store_true")
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if asked.measure:
        heard = measure(asked.folder, DEMO / "corpus")
        print(numbers(heard).to_string(index=False))
        print("words heard in nothing:", (heard[heard.kind == "sound"].said != "").sum())
        measured_again(asked.folder, heard)
    else:
        whisper = DEMO / "whisper"
        shutil.rmtree(whisper, ignore_errors=True)
        shutil.copytree(asked.folder / "model", whisper)
        shutil.copy(asked.folder / "curve.csv", whisper)
        (whisper / "README.md").write_text(card(asked.folder, whisper, DEMO / "corpus"), encoding="utf-8")
