"""Train the demo's Whisper from nothing: resumable, on a CPU in about an hour, on a GPU in minutes.

    python data/build/cache.py data/raw/demo_training 0 120      # the speech; may still be running
    python data/build/train_whisper.py data/raw/demo_run         # writes checkpoint.pt, curve.csv, model/

Run it again to go on where it stopped. Batch order, masks and first weights are functions of the seed and the number of
the step, so a run that was killed sees what an unbroken one sees.

The loss is Whisper's own, the cross-entropy of the transcript, and at first two more that teach the encoder to listen
many times sooner, through heads that are thrown away: which word sounds at a frame, and CTC on letters. They fade to
nothing over the third quarter. Nothing ever tells the model phones, voice, gender or accent: what it knows of those it
found. One token in ten that the decoder is given is a wrong one, and more than half of the training clips say words in
no order; without either, the decoder learnt the grammar by heart and did not listen (held-out WER 74 %).

Three departures that save time and change no result of a finished model: windows are cut behind the longest clip of
the batch for most steps (positions are absolute and clips start at 0); matrices are multiplied in bfloat16; the rate
of learning stays up and falls only in the last quarter.
"""

import argparse
import csv
import json
import os
import platform
import re
import time
from pathlib import Path

import jiwer
import numpy as np
import sentences
import tokens
import torch
import transformers
from torch import nn
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

WINDOW = 8  # seconds
LETTERS = " abcdefghijklmnopqrstuvwxyz"
BATCH, SHARDS, SEED = 32, 120, 0
PEAK, WARM = 1.2e-3, 300
COLUMNS = ["step", "seconds", "cross_entropy", "ctc", "word_at", "rate", "wer", "heard_in_nothing"]
WRONG = 0.1  # of the tokens that the decoder is given


def blank_model(tokenizer, seed: int = SEED, width: int = 192) -> WhisperForConditionalGeneration:
    """The demo's Whisper before it has heard anything; also the untrained twin of later issues."""
    special = tokens.ids(tokenizer)
    end, start = special["<|endoftext|>"], special["<|startoftranscript|>"]
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=80, d_model=width, max_source_positions=WINDOW * 50,
        max_target_positions=64, encoder_layers=4, decoder_layers=2, encoder_attention_heads=width // 64,
        decoder_attention_heads=width // 64, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width,
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        suppress_tokens=None, begin_suppress_tokens=None, use_cache=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    model.set_attn_implementation("eager")  # with its backward, a quarter faster than the fused one on a CPU
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start, max_length=64,
        no_timestamps_token_id=special["<|notimestamps|>"], is_multilingual=False, return_timestamps=False,
        prev_sot_token_id=special["<|startofprev|>"], suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return model


class Ears:
    """WhisperFeatureExtractor's log-mel, of only as many frames as a clip has; the rest of the window is one value."""

    def __init__(self):
        self.extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW)
        self.filters = torch.tensor(self.extractor.mel_filters, dtype=torch.float32)  # (201, mel)
        self.hann = torch.hann_window(400)

    def __call__(self, sound: np.ndarray) -> torch.Tensor:
        """int16 samples to (mel, frame) in half precision; the last frame is what silence behind it looks like."""
        frames = min(-(-len(sound) // 160) + 3, WINDOW * 100)
        wave = torch.zeros(frames * 160 + 400)
        wave[: len(sound)] = torch.from_numpy(sound.astype(np.float32) / 32768)
        power = torch.stft(wave, 400, 160, window=self.hann, return_complex=True).abs()[:, :frames] ** 2
        mel = (self.filters.T @ power).clamp(min=1e-10).log10()
        return ((torch.maximum(mel, mel.max() - 8) + 4) / 4).half()


def window(mels: list[torch.Tensor], frames: int) -> torch.Tensor:
    """Clips as one batch (clip, mel, frame), each continued by its own last frame."""
    batch = torch.empty(len(mels), mels[0].shape[0], frames)
    for row, mel in zip(batch, mels, strict=True):
        row[:, : mel.shape[1]] = mel
        row[:, mel.shape[1] :] = mel[:, -1:]
    return batch


def shard(folder: Path, number: int, ears: Ears):
    """Clips of a shard as ([mel], [text], [[(start_s, end_s) a word]]); waits for it if it is still being made."""
    path = folder / f"{number:04d}.npz"
    while not path.exists():
        time.sleep(5)
    with np.load(path) as file:
        sounds, texts = np.split(file["sound"], file["ends"][:-1]), file["text"].tolist()
        times = [file["words"][file["words"][:, 0] == clip, 1:] for clip in range(len(texts))]
    return [ears(sound[: WINDOW * 16_000]) for sound in sounds], texts, times


def encode(encoder, mel: torch.Tensor) -> torch.Tensor:
    """WhisperEncoder.forward, of a window that may be shorter than the model's."""
    x = nn.functional.gelu(encoder.conv2(nn.functional.gelu(encoder.conv1(mel)))).transpose(1, 2)
    x = x + encoder.embed_positions.weight[: x.shape[1]]
    for layer in encoder.layers:
        x = layer(x, None)
        x = x[0] if isinstance(x, tuple) else x
    return encoder.layer_norm(x)  # (clip, position, d_model)


def mask(mel: torch.Tensor, lengths: list[int], rng: np.random.Generator) -> None:
    """SpecAugment, lightly: a band of mels and two short stretches of time become the clip's mean."""
    for row, length in zip(mel, lengths, strict=True):
        mean = row[:, :length].mean()
        low = rng.integers(0, 70)
        row[low : low + rng.integers(0, 12)] = mean
        for _ in range(2):
            first = rng.integers(0, max(length - 12, 1))
            row[:, first : first + rng.integers(0, 10)] = mean


def fading(step: int, steps: int) -> float:
    """What the two helping losses weigh: 1 for half of the training, then less, nothing in the last quarter."""
    return min(max(3 - 4 * step / steps, 0), 1)


def rate(step: int, steps: int) -> float:
    """Up over WARM steps, level, and down to nothing over the last quarter."""
    return PEAK * min((step + 1) / WARM, 1.0, (steps - step) / (steps / 4))


class Lesson:
    """Batches by number: step s is a batch of 32 clips of similar length out of a shard of 2,000."""

    def __init__(self, folder: Path, tokenizer, ears: Ears, shards: int):
        self.folder, self.tokenizer, self.ears, self.shards, self.now = folder, tokenizer, ears, shards, -1
        self.number = {word: i for i, word in enumerate(sentences.vocabulary())}

    def __call__(self, step: int, late: bool):
        each = 62
        if (turn := step // each) != self.now:
            self.now = turn
            self.mels, self.texts, self.times = shard(self.folder, turn % self.shards, self.ears)
            rng = np.random.default_rng([SEED, 1, turn])
            order = rng.permutation(len(self.mels))[: each * BATCH]
            order = order[np.argsort([self.mels[i].shape[1] for i in order], kind="stable")]
            self.batches = rng.permutation(order.reshape(each, BATCH))
        rows = self.batches[step % each]
        rng = np.random.default_rng([SEED, 2, step])
        mels, texts = [self.mels[i] for i in rows], [self.texts[i] for i in rows]
        longest = max(mel.shape[1] for mel in mels)
        whole = rng.random() < (0.3 if late else 0.05)
        frames = WINDOW * 100 if whole else min(WINDOW * 100, 20 * -(-(longest + int(rng.integers(0, 60))) // 20))
        mel = window(mels, frames)
        mask(mel, [m.shape[1] for m in mels], rng)
        said = [self.tokenizer(text).input_ids for text in texts]  # <|startoftranscript|><|notimestamps|> ... end
        most = max(map(len, said))
        ids = torch.full((BATCH, most), -100)
        for row, one in zip(ids, said, strict=True):
            row[: len(one)] = torch.tensor(one)
        given = ids[:, :-1].masked_fill(ids[:, :-1] == -100, self.tokenizer.eos_token_id)
        wrong = torch.from_numpy(rng.random(given.shape) < WRONG)
        wrong[:, :2] = False
        given = torch.where(wrong, torch.from_numpy(rng.integers(0, tokens.SIZE, given.shape)), given)
        letters = [torch.tensor([1 + LETTERS.index(c) for c in text], dtype=torch.long) for text in texts]
        words = torch.full((BATCH, frames // 2), -100)
        for row, i in zip(words, rows, strict=True):
            row[: self.mels[i].shape[1] // 2] = 0
            for word, (start, end) in zip(self.texts[i].split(), self.times[i], strict=False):
                row[round(start * 50) : round(end * 50)] = 1 + self.number[word]
        return mel, ids[:, 1:], given, letters, words


def losses(model, heads, mel, ids, given, letters, words):
    """Cross-entropy of the transcript; CTC of its letters; cross-entropy of the word at each position."""
    with torch.autocast(mel.device.type, torch.bfloat16):
        heard = encode(model.model.encoder, mel)
        out = model.model.decoder(input_ids=given, encoder_hidden_states=heard, use_cache=False)
        logits = model.proj_out(out.last_hidden_state)
        spelt, word = heads["letters"](heard), heads["words"](heard)
    ce = nn.functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), ignore_index=-100)
    lengths = torch.tensor([len(x) for x in letters])
    ctc = nn.functional.ctc_loss(
        spelt.float().log_softmax(-1).transpose(0, 1), torch.cat(letters), torch.full((len(mel),), heard.shape[1]),
        lengths, zero_infinity=True,
    )  # fmt: skip
    at = nn.functional.cross_entropy(word.float().flatten(0, 1), words.flatten(), ignore_index=-100)
    return ce, ctc, at


@torch.no_grad()
def listen(model, tokenizer, mels, batch: int = 50) -> list[str]:
    """What the model hears, by plain `generate` on whole windows."""
    model.eval()
    said = []
    for first in range(0, len(mels), batch):
        features = window(mels[first : first + batch], WINDOW * 100).to(model.device)
        mask_ = torch.ones(features.shape[0], features.shape[-1], dtype=torch.long)
        ids = model.generate(features, attention_mask=mask_, max_length=40)
        said += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    model.train()
    return said


def error_rate(texts, said) -> tuple[float, float]:
    """(word error rate of the speech, share of the clips without speech in which words are heard)."""
    spoken = [(t, s) for t, s in zip(texts, said, strict=True) if t]
    quiet = [s for t, s in zip(texts, said, strict=True) if not t]
    wer = jiwer.wer([t for t, _ in spoken], [s for _, s in spoken])
    return wer, sum(map(bool, quiet)) / max(len(quiet), 1)


def train(folder: Path, cache: Path, steps: int, shards: int, width: int, free: Path | None, every: int = 310) -> None:
    """Go on from `folder`'s checkpoint, if there is one, to `steps`; then save the model."""
    transformers.logging.set_verbosity_error()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, ears = tokens.make(), Ears()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = blank_model(tokenizer, width=width).to(device)
    sizes = {"letters": len(LETTERS) + 1, "words": len(sentences.vocabulary()) + 1}
    heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()}).to(device)
    matrices = [p for p in [*model.parameters(), *heads.parameters()] if p.requires_grad]
    optimiser = torch.optim.AdamW(matrices, lr=PEAK, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    step, seconds = 0, 0.0
    if (path := folder / "checkpoint.pt").exists():
        state = torch.load(path, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds = state["step"], state["seconds"]
        _forget(folder / "curve.csv", step)
    lesson = Lesson(cache, tokenizer, ears, shards)
    checked = shard(cache, 9_000, ears)  # held-out sentences by other voices; see cache.py
    since, seen = time.time(), []
    model.train()
    while step < steps:
        lr = rate(step, steps)
        for group in optimiser.param_groups:
            group["lr"] = lr
        mel, ids, given, letters, words = lesson(step, late=step > 0.75 * steps)
        ce, ctc, at = losses(model, heads, mel.to(device), ids.to(device), given.to(device), letters, words.to(device))
        optimiser.zero_grad()
        (ce + fading(step, steps) * (0.5 * ctc + at)).backward()
        nn.utils.clip_grad_norm_(matrices, 1.0)
        optimiser.step()
        seen.append((ce.item(), ctc.item(), at.item()))
        step += 1
        if step % 31 == 0 or step == steps:
            now = seconds + time.time() - since
            wer, invented = "", ""
            if step % every == 0 or step == steps:
                wer, invented = error_rate(checked[1], listen(model, tokenizer, checked[0]))
                facts = {"model": model.state_dict(), "heads": heads.state_dict(), "optimiser": optimiser.state_dict()}
                torch.save(facts | {"step": step, "seconds": now}, folder / "checkpoint.part")
                os.replace(folder / "checkpoint.part", path)
                if device == "cpu" and free and free.exists():
                    torch.set_num_threads(os.cpu_count())
            row = [step, f"{now:.0f}", *np.mean(seen, axis=0).round(4), f"{lr:.2e}", wer, invented]
            new = not (folder / "curve.csv").exists()
            with open(folder / "curve.csv", "a", newline="") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(COLUMNS)
                writer.writerow(row)
            print(*row, flush=True)
            seen = []
    save(model, tokenizer, ears, folder / "model")
    facts = {"shards": shards, "vocabulary": len(sentences.vocabulary()), "hardware": _hardware(device)}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))


def _forget(curve: Path, step: int) -> None:
    """Take rows after `step` out of the curve: they are about to be made again."""
    with open(curve, newline="") as file:
        head, *rows = csv.reader(file)
    with open(curve, "w", newline="") as file:
        csv.writer(file).writerows([head, *(row for row in rows if int(row[0]) <= step)])


def _hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return f"{torch.get_num_threads()} of {os.cpu_count()} cores, {found[1] if found else platform.machine()}"


def save(model, tokenizer, ears: Ears, folder: Path) -> None:
    """The model as `from_pretrained` wants it, in half precision."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ears.extractor.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("data/raw/demo_training"))
    parser.add_argument("--steps", type=int, default=8_060)
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--free", type=Path, help="all cores are used from the moment this file exists; else one")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    train(asked.folder, asked.cache, asked.steps, asked.shards, asked.width, asked.free)
