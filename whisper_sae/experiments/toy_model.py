"""A small restorer of damaged texts, made from nothing: texts of an invented archive, and a net that fills gaps.

    told = fragments.write_texts(1200, seed)                    # a row a text, with where it is damaged
    net = fragments.train(told.text, seed)                      # predicts letters that were covered
    letters = fragments.of_letters(told.text, told.damage)      # what is known of each letter

It stands for any model that is not Whisper and not from a hub: a plain `torch.nn.Module` and a list of items. Texts
are entries of an archive, `3 jars of oil for lugal enak, month of reed`, in which letters are lost (`x`), a stretch is
broken off (`[..]`) or half a word is doubtful (`<ba>rley`).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789,.[]<>#"
COVERED = LETTERS.index("#") + 1
"""What stands for a letter that the net has to restore; 0 is padding."""

LONGEST = 72
GOODS = ("barley", "oil", "wool", "copper", "dates", "reeds", "sheep", "beer", "bread", "timber")
MEASURES = ("jars", "baskets", "talents", "bundles", "sacks")
TITLES = ("lugal", "scribe", "priest", "smith", "weaver")
STEMS = ("en", "bal", "ur", "shul", "gim", "nar", "dum", "kal", "mes", "zid")
ENDINGS = ("ak", "gal", "mah", "ki", "un")
MONTHS = ("reed", "plough", "lamps", "harvest", "bricks", "sowing")
MARKS = "x[]<>."


# ------------------------------------------------------------------------------------------------- the archive


def write_texts(count: int, seed: int = 0, damaged: float = 0.6) -> pd.DataFrame:
    """`count` entries, a row each: `text`, `whole` (before the damage), `split`, `unit`, and `damage`, a string as long
    as the text with `1` where a mark of damage stands and `0` elsewhere. A share `damaged` of them has any."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        whole = _entry(rng)
        text, damage = _break(whole, rng) if rng.uniform() < damaged else (whole, "0" * len(whole))
        split = ("train", "train", "train", "validation", "test")[number % 5]
        rows.append((f"t{number:05d}", text[:LONGEST], whole, damage[:LONGEST], split, f"t{number:05d}"))
    return pd.DataFrame(rows, columns=["id", "text", "whole", "damage", "split", "unit"])


def _entry(rng: np.random.Generator) -> str:
    def one(of: Sequence[str]) -> str:
        return of[rng.integers(len(of))]

    name = one(STEMS) + one(ENDINGS)
    told = f"{rng.integers(1, 60)} {one(MEASURES)} of {one(GOODS)} for {one(TITLES)} {name}"
    return told + (f", month of {one(MONTHS)}" if rng.uniform() < 0.6 else f", day {rng.integers(1, 31)}")


def _break(whole: str, rng: np.random.Generator) -> tuple[str, str]:
    """The entry as it was found, and where its marks of damage are."""
    text, damage = list(whole), [0] * len(whole)
    for at in rng.choice(len(text), size=rng.integers(1, 5), replace=False):
        if text[at].isalpha():
            text[at], damage[at] = "x", 1
    way, at = rng.integers(3), int(rng.integers(3, len(text) - 8))
    if way == 0:  # a stretch is broken off
        text[at : at + 5], damage[at : at + 5] = list("[..]"), [1] * 4
    elif way == 1:  # half a word is doubtful
        text[at : at + 3] = ["<", *text[at : at + 3], ">"]
        damage[at : at + 3] = [1, *damage[at : at + 3], 1]
    return "".join(text), "".join(map(str, damage))


def encoded(texts: Sequence[str]) -> Tensor:
    """Texts as numbers of letters, 0 behind the end: (text, position)."""
    rows = [torch.tensor([LETTERS.index(letter) + 1 for letter in text]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def collate(texts: Sequence[str]) -> tuple[Tensor, np.ndarray]:
    """Texts as `modules` wants them: letters, and which of them count."""
    letters = encoded(texts)
    return letters, (letters > 0).numpy()


# ------------------------------------------------------------------------------------------------- the restorer


class Restorer(nn.Module):
    """A masked transformer over letters: (text, position) to (text, position, letter). `layers.i` are its sites."""

    def __init__(self, width: int = 64, depth: int = 6, heads: int = 4):
        super().__init__()
        self.sizes = {"width": width, "depth": depth, "heads": heads}
        self.letters = nn.Embedding(len(LETTERS) + 1, width, padding_idx=0)
        self.places = nn.Embedding(LONGEST, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, len(LETTERS) + 1)

    def forward(self, letters: Tensor) -> Tensor:
        hidden = self.letters(letters) + self.places(torch.arange(letters.shape[1], device=letters.device))
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=letters == 0)
        return self.out(self.norm(hidden))


def train(texts: Sequence[str], seed: int = 0, *, steps: int = 400, size: int = 16, **sizes) -> Iterator[dict]:
    """Train a restorer on texts of which 15 % of the letters are covered; yields a row a step, the last with the `net`.

    Marks of damage are never covered: nobody knows what they should be.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Restorer(**sizes)
    letters, rng = encoded(texts), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01)
    rise = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.15)
    for step in range(steps):
        given = letters[torch.randint(len(letters), (size,), generator=rng)]
        covered = cover(given, rng)
        said = net(torch.where(covered, COVERED, given))
        loss = F.cross_entropy(said[covered], given[covered])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        rise.step()
        right = (said[covered].argmax(dim=-1) == given[covered]).float().mean()
        yield {"step": step, "loss": loss.item(), "right": right.item()} | (
            {"net": net.eval()} if step + 1 == steps else {}
        )


def cover(letters: Tensor, rng: torch.Generator, share: float = 0.15) -> Tensor:
    """Which letters are covered, (text, position) bool: some that count and are no marks of damage."""
    marks = torch.tensor([LETTERS.index(mark) + 1 for mark in MARKS])
    free = (letters > 0) & ~torch.isin(letters, marks)
    return free & (torch.rand(letters.shape, generator=rng) < share)


@torch.no_grad()
def restored(net: Restorer, texts: Sequence[str], seed: int = 0) -> dict[str, float]:
    """The share of covered letters that the net restores, and what saying the commonest letter would."""
    letters, rng = encoded(texts), torch.Generator().manual_seed(seed)
    covered = cover(letters, rng)
    said = net(torch.where(covered, COVERED, letters))[covered].argmax(dim=-1)
    true = letters[covered]
    return {
        "restored": (said == true).float().mean().item(),
        "commonest": (true == true.mode().values).float().mean().item(),
    }


def save(net: Restorer, folder: str | Path) -> None:
    """Write `restorer.safetensors` and `restorer.json`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), Path(folder) / "restorer.safetensors")
    (Path(folder) / "restorer.json").write_text(json.dumps(net.sizes), encoding="utf-8")


def load(folder: str | Path) -> Restorer:
    """What `save` wrote, in evaluation mode."""
    net = Restorer(**json.loads((Path(folder) / "restorer.json").read_text(encoding="utf-8")))
    net.load_state_dict(load_file(Path(folder) / "restorer.safetensors"))
    return net.eval()


def identity(net: nn.Module) -> str:
    """What a net is, for the key of a result: a digest of its weights."""
    total = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        total.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:12]


# ------------------------------------------------------------------------------------------------- what is asked


def of_letters(texts: Sequence[str], damage: Sequence[str], near: int = 3) -> pd.DataFrame:
    """What is known of each letter, a row each in the order of a store: `item`, `letter`, and bool: `damaged` (a mark
    stands there), `beside` (one stands within `near`, not there), `ak` (the letters of a name's ending -ak), `lugal`
    (of that word), `digit`, `first` (of a word)."""
    rows = []
    for item, (text, marks) in enumerate(zip(texts, damage, strict=True)):
        told = np.array([mark == "1" for mark in marks])
        wide = np.convolve(told, np.ones(2 * near + 1), mode="same") > 0
        part = pd.DataFrame({"item": item, "letter": list(text), "damaged": told, "beside": wide & ~told})
        part["ak"], part["lugal"] = _where(text, "ak,"), _where(text, "lugal")
        part["digit"] = [letter.isdigit() for letter in text]
        part["first"] = [at == 0 or text[at - 1] == " " for at in range(len(text))]
        rows.append(part)
    return pd.concat(rows, ignore_index=True)


def _where(text: str, wanted: str) -> np.ndarray:
    found, at = np.zeros(len(text), dtype=bool), text.find(wanted)
    while at >= 0:
        found[at : at + len(wanted.rstrip(","))] = True
        at = text.find(wanted, at + 1)
    return found
