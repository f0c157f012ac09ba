"""From a table of clips to what is heard at a time, what it will cost, and what another way of hearing changes.

The recipes of recordings are made of these; they know nothing of where a result is kept.
"""

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from whisper_sae.activations import packing, store
from whisper_sae.data import audio, clip_table
from whisper_sae.model import text, whisper_model
from whisper_sae.model.decoding import Decoder
from whisper_sae.profiles import Profile

PATIENCE = 3.0
"""Seconds that may be spent on finding out how long a recording will take; one window is heard in any case."""
TOKENS_A_SECOND = 4
"""What transcripts of speech have, roughly: for that estimate."""


def planned(run: Profile, whisper: whisper_model.Whisper, heard: pd.DataFrame) -> pd.DataFrame:
    """What is heard at a time: a row a piece of a clip, `clip first samples heard at`, as `packing` tells them."""
    windows = clip_table.windows(heard, whisper.window)
    if run.windows == "clip":
        return packing.alone(windows)
    voices = heard.speaker.where(heard.speaker == "", heard.split + "/" + heard.speaker)
    gap = round(packing.GAP * clip_table.RATE / whisper.samples_a_frame)
    return packing.pack(
        windows, voices, frame=whisper.samples_a_frame, positions=whisper.positions, gap=gap
    )  # fmt: skip


def pieces(whisper: whisper_model.Whisper, windows: pd.DataFrame) -> np.ndarray:
    """For the store, of each piece: its window, its first position, its number of positions."""
    count = -(-windows.samples.to_numpy() // whisper.samples_a_frame)
    return np.stack([windows.heard.to_numpy(), windows["at"].to_numpy(), count], axis=1)


def sound_of(heard: pd.DataFrame, windows: pd.DataFrame, number: int) -> np.ndarray:
    """The samples of one piece, 16 kHz: (sample,)."""
    clip, first, samples = windows.loc[number, ["clip", "first", "samples"]]
    return audio.excerpt(heard.path[clip], int(first), int(samples))


def reader(whisper: whisper_model.Whisper, heard: pd.DataFrame, windows: pd.DataFrame) -> Callable[[range], tuple]:
    """A function that reads what some windows hold: their sounds, where in these each piece begins (in samples), and
    the kinds of their frames, (window, position)."""
    ends = np.searchsorted(windows.heard.to_numpy(), np.arange(windows.heard.max() + 2))

    def read(numbers: range) -> tuple[list[np.ndarray], list[list[int]], np.ndarray]:
        sounds, starts, kinds = [], [], []
        for number in numbers:
            rows = range(ends[number], ends[number + 1])
            at = [int(windows["at"][row]) for row in rows]
            parts = [sound_of(heard, windows, row) for row in rows]
            sounds.append(packing.joined(parts, at, whisper.samples_a_frame))
            starts.append([position * whisper.samples_a_frame for position in at])
            each = [clip_table.kinds(part, whisper.samples_a_frame, whisper.positions) for part in parts]
            kinds.append(packing.joined_kinds(each, at))
        return sounds, starts, np.stack(kinds)

    return read


def listener(
    run: Profile, whisper: whisper_model.Whisper, heard: pd.DataFrame, windows: pd.DataFrame, wanted: list[str]
):
    """`hear` and `prepare`, as `activations.write` and `live.Live` take them: what sites say of some of the windows.

    Always `batch_windows` are encoded at a time, silence where there are no more, so that shapes are equal. Even so the
    last bits of an activation may depend on the place of a window in its batch, and on the processor.
    """

    def hear(_numbers, ready: tuple[list, list, np.ndarray]) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        sounds, starts, kinds = ready
        lacking = run.batch_windows - len(sounds)
        mels = whisper_model.mel(whisper, sounds + [np.zeros(1, np.float32)] * lacking, starts + [[0]] * lacking)
        said = whisper_model.record(whisper, mels, wanted)
        return {site: hidden[: len(sounds)] for site, hidden in said.items()}, kinds

    return hear, reader(whisper, heard, windows)


def some(windows: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """At most `most` of what is heard at a time, drawn at random: rows as `planned` gives them."""
    drawn = np.random.default_rng(seed).permutation(windows.heard.max() + 1)[:most]
    kept = windows[windows.heard.isin(drawn)].reset_index(drop=True)
    return kept.assign(heard=pd.factorize(kept.heard)[0])


def expected(run: Profile, whisper: whisper_model.Whisper, windows: pd.DataFrame, wanted: list[str]) -> dict:
    """What a recording will take: `windows`, `frames`, `bytes` exactly, `seconds` by `seconds_a_window`."""
    count = int(windows.heard.max()) + 1
    output = [site for site in wanted if site == whisper_model.OUTPUT]
    widths = whisper_model.sites(whisper.config, [site for site in wanted if site not in output])
    valid = int(pieces(whisper, windows)[:, 2].sum())
    return {
        "windows": count,
        "frames": valid,
        "bytes": store.size_of(widths, valid, len(windows), whisper.positions, run.dtype),
        "seconds": count * seconds_a_window(whisper, [*widths, *output], min(run.batch_windows, count)),
    }


def seconds_a_window(whisper: whisper_model.Whisper, wanted: list[str], batch: int) -> float:
    """What a window takes here and now, of silence, in batches of so many: seconds.

    It is heard as a recording hears it: log-mel, the encoder up to the last of the sites, and the way off the device.
    Decoding clips and writing files are left out; they go on at the same time. What is heard first takes longer and
    does not count, unless patience ends with it; a batch is heard only if that can be done twice within PATIENCE.
    """
    silence = np.zeros(whisper.window, np.float32)

    def heard(count: int) -> float:
        started = time.perf_counter()
        for said in whisper_model.record(whisper, whisper_model.mel(whisper, [silence] * count), wanted).values():
            said.cpu()
        return (time.perf_counter() - started) / count

    if (first := heard(1)) > PATIENCE:
        return first
    alone = heard(1)
    if 2 * batch * alone > PATIENCE:
        return alone
    heard(batch)
    return heard(batch)


def by_length(seconds: np.ndarray, size: int) -> list[np.ndarray]:
    """Batches of windows of so many seconds, (window,), the longest first, so that transcripts of a batch end at about
    one time: the numbers of the windows of each."""
    order = np.argsort(-seconds, kind="stable")
    return [order[first : first + size] for first in range(0, len(order), size)]


@torch.no_grad()
def seconds_of_transcripts(whisper: whisper_model.Whisper, seconds: np.ndarray, batch: int, pool: int) -> float:
    """What greedy transcripts of windows of so many seconds, (window,), take here and now, without the encoder, if each
    has TOKENS_A_SECOND: seconds.

    They are decoded twice `batch` at a time, of `pool` batches those of about one length. Timed are one step of a batch
    and the keys and values of two windows of silence.
    """
    decoder, rows = Decoder(whisper, text.prompt(whisper)), torch.zeros(2 * batch, dtype=torch.long)
    silence = torch.zeros(2, whisper.positions, whisper.config.d_model, device=whisper.device)
    listened = [(key[rows], value[rows]) for key, value in decoder.listened(silence)]
    ids = torch.full((len(rows), 1), decoder.end, device=whisper.device)

    def step() -> torch.Tensor:
        said = decoder.step(ids, 0, listened, [None] * len(listened), lambda _site, x, _rows: x, rows)
        return decoder.out(said).argmax(dim=-1).cpu()

    pools = [seconds[first : first + pool * batch] for first in range(0, len(seconds), pool * batch)]
    longest = np.array([some[part[0]] for some in pools for part in by_length(some, 2 * batch)])
    steps = np.minimum(TOKENS_A_SECOND * longest + len(decoder.prompt), decoder.longest).sum()
    return float(steps * _took(step) + len(seconds) / 2 * _took(lambda: decoder.listened(silence)[-1][1].cpu()))


def seconds_of_given(whisper: whisper_model.Whisper, ids: torch.Tensor, wanted: list[str]) -> float:
    """What sites of the decoder take here and now, given tokens, (window, position), without the encoder: seconds."""
    some = ids[:2]
    silence = torch.zeros(len(some), whisper.positions, whisper.config.d_model, device=whisper.device)

    def given() -> list[torch.Tensor]:
        return [hidden.cpu() for hidden in whisper_model.record(whisper, None, wanted, some, silence).values()]

    return _took(given) * len(ids) / len(some)


def _took(work: Callable) -> float:
    """Seconds of a call that is not the first."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def said(cost: dict) -> str:
    """One line of what `expected` found."""
    minutes = cost["seconds"] / 60
    size = f"{cost['bytes'] / 1e9:.2f} GB" if cost["bytes"] >= 1e8 else f"{cost['bytes'] / 1e6:.1f} MB"
    return (
        f"{cost['windows']:,} windows, {cost['frames']:,} frames, {size}, "
        f"about {f'{minutes:.0f} min' if minutes > 2 else f'{60 * minutes:.0f} s'}"
    )


def frames_heard(run: Profile, heard: pd.DataFrame, wanted: list[str]) -> dict[str, torch.Tensor]:
    """What each site says of every valid frame of the clips, in the order of the clips: {site: (frame, width)}."""
    whisper = whisper_model.load(run.model, run.device, precision=run.precision)
    windows = planned(run, whisper, heard)
    read, of_window = reader(whisper, heard, windows), pieces(whisper, windows)
    parts = [{}] * len(windows)
    total = int(windows.heard.max()) + 1
    for first in range(0, total, run.batch_windows):
        numbers = range(first, min(first + run.batch_windows, total))
        sounds, starts, _ = read(numbers)
        told = whisper_model.record(whisper, whisper_model.mel(whisper, sounds, starts), wanted)
        for row in np.flatnonzero((of_window[:, 0] >= numbers.start) & (of_window[:, 0] < numbers.stop)):
            window, at, count = of_window[row]
            parts[row] = {site: told[site][window - first, at : at + count].cpu().clone() for site in wanted}
    order = windows.sort_values(["clip", "first"]).index
    return {site: torch.cat([parts[row][site] for row in order]) for site in wanted}


def compare(run: Profile, others: dict[str, Profile], heard: pd.DataFrame, wanted: list[str]) -> pd.DataFrame:
    """How far other ways of hearing the same clips lead away from that of `run`: a row a way and site.

    `cosine` is the mean over frames and `cosine_low` its 5 % quantile; `error` is the squared difference, as a share of
    the variance of the frames: what a dictionary could not tell from its own error.
    """
    right, rows = frames_heard(run, heard, wanted), []
    for name, other in others.items():
        found = frames_heard(other, heard, wanted)
        for site in wanted:
            alike = torch.cosine_similarity(right[site], found[site], dim=-1)
            away = (right[site] - found[site]).square().sum() / (right[site] - right[site].mean(0)).square().sum()
            rows.append((name, site, len(alike), alike.mean().item(), alike.quantile(0.05).item(), away.item()))
    return pd.DataFrame(rows, columns=["heard", "site", "frames", "cosine", "cosine_low", "error"])
