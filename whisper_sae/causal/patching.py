"""Change what Whisper says inside, and read what it then writes: every clip is heard once, every edit goes on from
there.

    heard = patching.hear(whisper, sounds, ["encoder.2.resid"])["encoder.2.resid"]
    coded = Coded(heard, coder)
    wrote = patching.write(heard, {"without 30": coded.edit(edits.silence([30]))})    # a text a clip

The encoder runs up to the site once a clip. An edit there goes on with the next layer, and what an edit leaves as it
is, such as clips in which a silenced feature never fires, is not run again. What is left of all edits and clips is
decoded in full batches. Frames of padding are left alone unless a mask says otherwise.

What is held lies on the model's device, and an SAE is copied there (`Coded`). Numbers of clips, masks, codes and tokens
stay on the CPU, from where they index tensors of any device. The model runs in float32 here, also where a dictionary
was trained on activations from bfloat16 products.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csc_array
from torch import Tensor

from whisper_sae.causal.edits import Edit
from whisper_sae.devices import on_idle_cores
from whisper_sae.model import text, whisper_model
from whisper_sae.model.decoding import Confidence, Decoder, See, answering, beneath, most_tokens
from whisper_sae.model.whisper_model import RATE

BATCH = 16
"""Windows in one batch: on a processor more are no faster, for what is said of them leaves its cache."""


@dataclass(frozen=True)
class Change:
    """What is said at a site instead: `see` is given x, (item, frame, width), and the items' clips, (item,)."""

    see: Callable[[Tensor, Tensor], Tensor]
    touched: np.ndarray | None = None
    """(clip,) bool: in which clips it can change anything; None: in any."""
    where: Tensor | None = None
    """(clip, frame) bool: the frames that are changed; None: all that are not padding. At a site of the decoder, (clip,
    position) of the tokens that are given; None: all."""


@dataclass
class Heard:
    """Clips that were heard up to a site: `held` (clip, frame, width) is the stream from which layer `layer` goes
    on."""

    whisper: whisper_model.Whisper
    site: str
    held: Tensor
    layer: int
    encoded: Tensor
    """(clip, frame, width): what the decoder is given when nothing is changed."""
    valid: Tensor
    """(clip, frame) bool: not padding."""
    decoder: Decoder
    plain: list[list[int]] = field(default_factory=list)
    """The tokens written of each clip when nothing is changed."""
    languages: list[str] | None = None
    """The language that each clip is decoded in; None: English."""

    def __len__(self) -> int:
        return len(self.encoded)

    def prompts(self, clips: Tensor | None = None) -> Tensor | None:
        """The prompt of each of some clips, all if None: (clip, position)."""
        if self.languages is None:
            return None
        every = text.prompts(self.whisper, self.languages)
        return every if clips is None else every[clips]

    def limits(self, clips: Tensor | None = None) -> Tensor:
        """The number of tokens at which transcripts of some clips, all if None, are cut: (clip,)."""
        frames = (self.valid if clips is None else self.valid[clips]).sum(dim=1)
        return most_tokens(frames * (self.whisper.samples_a_frame / RATE))

    @property
    def in_decoder(self) -> bool:
        return self.site.startswith("decoder.")

    @property
    def direct(self) -> bool:
        """Whether `held` is the stream under the site itself; otherwise the layer is run again to reach it."""
        return self.site.rsplit(".", 1)[1] in ("embed", "resid", "normed")


# ---------------------------------------------------------------------------------------------------- hearing


def prompt_of(whisper: whisper_model.Whisper) -> list[int]:
    """The tokens with which every transcript in English begins; see `text.prompt`."""
    return text.prompt(whisper)


@torch.no_grad()
def hear(whisper: whisper_model.Whisper, sounds: Sequence[np.ndarray], sites: Sequence[str], batch: int = BATCH,
         languages: Sequence[str] | None = None) -> dict:  # fmt: skip
    """{site: Heard} of clips, each (sample,) of 16 kHz and no longer than a window; the encoder runs once for all
    sites. `languages` are the codes of the clips' languages; None is English.

    Raises BadModel for a site that there is not, a clip that is too long, and where there is no decoder or tokenizer.
    """
    decoder = Decoder(whisper, prompt_of(whisper))
    places = {site: _begin(whisper, site) for site in sites}
    streams = {stream for stream, _ in places.values() if stream}
    held: dict[str, Tensor] = {}  # whole from the first batch on: parts and their sum would take twice the memory
    for first in on_idle_cores(range(0, len(sounds), batch)):
        kept: dict[str, Tensor] = {}
        look = {stream: lambda x, stream=stream, kept=kept: kept.update({stream: x}) for stream in streams}
        with whisper_model.at(whisper, look):
            kept[""] = whisper.encoder(
                whisper_model.mel(whisper, list(sounds[first : first + batch]))
            ).last_hidden_state
        for stream in ("", *streams):
            if stream not in held:
                held[stream] = kept[stream].new_empty(len(sounds), *kept[stream].shape[1:])
            held[stream][first : first + batch] = kept[stream]
    every, frames = held.pop(""), torch.arange(whisper.positions)
    lengths = torch.tensor([-(-len(sound) // whisper.samples_a_frame) for sound in sounds])
    valid = frames < lengths[:, None]
    spoken = None if languages is None else list(languages)
    begun = text.prompts(whisper, spoken or [text.languages.ENGLISH] * len(sounds))
    limits = most_tokens(lengths * (whisper.samples_a_frame / RATE))
    parts = on_idle_cores(zip(every.split(batch), begun.split(batch), limits.split(batch), strict=True))
    plain = [tokens for part, first, most in parts for tokens in decoder.write(part, prompts=first, limits=most)]
    return {
        site: Heard(whisper, whisper_model.named(whisper.config, site), held.get(stream, every), layer, every, valid,
                    decoder, plain, spoken)
        for site, (stream, layer) in places.items()
    }  # fmt: skip


def _begin(whisper: whisper_model.Whisper, site: str) -> tuple[str, int]:
    """The stream that is held for a site of the encoder, "" for one of the decoder, and the layer that hears it
    next."""
    side, *rest = whisper_model.named(whisper.config, site).split(".")
    if side == "decoder":
        return "", 0
    if rest == ["embed"]:
        return "encoder.embed", 0
    layer = int(rest[0])
    if rest[1] in ("resid", "normed"):
        return f"encoder.{layer}.resid", layer + 1
    return (f"encoder.{layer - 1}.resid" if layer else "encoder.embed"), layer


def some(heard: Heard, clips: np.ndarray) -> Heard:
    """The same for some of the clips, their numbers or (clip,) bool."""
    return some_at_sites({"": heard}, clips)[""]


def some_at_sites(cached: Mapping[str, Heard], clips: np.ndarray) -> dict[str, Heard]:
    """`some` for several sites of the same clips. Tensors that the sites share are copied once."""
    copies: dict[int, Tensor] = {}
    result = {}
    for site, heard in cached.items():
        at = torch.from_numpy(np.arange(len(heard))[clips])
        tensors = {name: getattr(heard, name) for name in ("held", "encoded", "valid")}
        for tensor in tensors.values():
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor[at]
        plain = [heard.plain[number] for number in at.tolist()]
        languages = heard.languages and [heard.languages[number] for number in at.tolist()]
        parts = {name: copies[id(tensor)] for name, tensor in tensors.items()}
        result[site] = replace(heard, **parts, plain=plain, languages=languages)
    return result


# --------------------------------------------------------------------------------------------------- changing


def _told(heard: Heard, changes: Sequence[tuple[Change, Tensor]]) -> Callable[[Tensor], Tensor]:
    """What is said of a batch that is made of parts, each a change and the clips it is made in."""

    def see(x: Tensor) -> Tensor:
        parts = x.split([len(clips) for _, clips in changes])
        said = []
        for part, (change, clips) in zip(parts, changes, strict=True):
            mask = (heard.valid if change.where is None else change.where)[clips].to(x.device)
            said.append(torch.where(mask[..., None], change.see(part, clips), part))
        return _finite(torch.cat(said), heard.site)

    return see


def of_frames(
    function: Callable[[Tensor], Tensor], where: Tensor | None = None, most: int = 4096
) -> Callable[[Tensor, Tensor], Tensor]:
    """A `Change.see` that maps frames one by one by `function`, (frame, width) -> (frame, width), at most `most` at a
    time: those of `where`, (clip, frame) bool, and no others; None is all."""

    def see(x: Tensor, clips: Tensor) -> Tensor:
        mask = torch.ones(x.shape[:-1], dtype=torch.bool) if where is None else where[clips]
        result, mask = x.clone(), mask.to(x.device)
        result[mask] = torch.cat([function(part) for part in x[mask].split(most)])
        return result

    return see


def _finite(x: Tensor, site: str) -> Tensor:
    """x, or ValueError where a change has made it NaN or infinite: the model would go on and write nonsense."""
    if not torch.isfinite(x).all():
        raise ValueError(f"{site}: a change gives values that are not finite; look at what is added there")
    return x


def _encoded(heard: Heard, changes: Sequence[tuple[Change, Tensor]]) -> Tensor:
    """What the decoder is given of a batch, (item, frame, width): the encoder goes on after the site."""
    encoder, see = heard.whisper.encoder, _told(heard, changes)
    x = heard.held[torch.cat([clips for _, clips in changes])]
    if heard.site.endswith(".normed"):
        if heard.layer == len(encoder.layers):
            return see(encoder.layer_norm(x))
        x = beneath(encoder.layer_norm, x, see)
    elif heard.direct:
        x = see(x)
    else:
        with whisper_model.at(heard.whisper, {heard.site: see}):
            return _onwards(encoder, x, heard.layer)
    return _onwards(encoder, x, heard.layer)


def _onwards(encoder, x: Tensor, layer: int) -> Tensor:
    for one in encoder.layers[layer:]:
        said = one(x, None)
        x = said[0] if isinstance(said, tuple) else said
    return encoder.layer_norm(x)


@dataclass
class Run:
    """A batch that is run: what the decoder is given, (item, frame, width), and at one of its own sites, `see()`, who
    answers there, anew for every time that it speaks."""

    heard: Heard
    clips: Tensor
    encoded: Tensor
    see: Callable[[], See] | None = None

    def at(self, rows: Tensor) -> "Run":
        """The same of some items, (item,) bool, of a batch of one change."""
        see = self.see and (lambda: _rows_of(self.see(), rows.nonzero().squeeze(1)))
        return Run(self.heard, self.clips[rows], self.encoded[rows.to(self.encoded.device)], see)

    def write(self, decoder: Decoder | None = None, drafts: list[list[int]] | None = None) -> list[list[int]]:
        """The tokens of each item. Another decoder and other drafts than the clips' may be given."""
        decoder, begun = self.heard.decoder if decoder is None else decoder, self.heard.prompts(self.clips)
        limits = self.heard.limits(self.clips)
        if self.see is not None:
            return decoder.write(self.encoded, self.see(), begun, limits)
        drafts = [self.heard.plain[clip] for clip in self.clips.tolist()] if drafts is None else drafts
        return decoder.check(self.encoded, drafts, begun, limits)

    def confidence(self, tokens: list[list[int]]) -> Confidence:
        """Of the tokens of each item: see `Decoder.confidence`."""
        how = {} if self.see is None else {"see": self.see()}
        how |= {"prompts": self.heard.prompts(self.clips), "limits": self.heard.limits(self.clips)}
        return self.heard.decoder.confidence(self.encoded, tokens, **how)


def _rows_of(see: See, rows: Tensor) -> See:
    """The same hook for a batch of the rows (item,) of the batch that it was made for."""
    return lambda site, x, items: see(site, x, rows.to(items.device)[items])


def run_of(heard: Heard, changes: Sequence[tuple[Change, Tensor]]) -> Run:
    """The batch of some changes, each with its clips."""
    clips = torch.cat([mine for _, mine in changes])
    if heard.in_decoder:
        return Run(heard, clips, heard.encoded[clips], lambda: _speaking(heard, changes, clips))
    return Run(heard, clips, _encoded(heard, changes))


def _speaking(heard: Heard, changes: Sequence[tuple[Change, Tensor]], clips: Tensor) -> See:
    """Who answers at a site of the decoder. It counts positions as they come, so it is good for one transcript."""
    norm = heard.whisper.decoder.layer_norm if heard.site.endswith(".normed") else None
    part_of = torch.repeat_interleave(torch.arange(len(changes)), torch.tensor([len(c) for _, c in changes]))
    done = 0

    def look(x: Tensor, rows: Tensor) -> Tensor:
        nonlocal done
        said, here, rows = x.clone(), slice(done, done + x.shape[1]), rows.cpu()
        done = here.stop
        for number in part_of[rows].unique().tolist():
            change, mine = changes[number][0], (part_of[rows] == number).nonzero().squeeze(1)
            new = change.see(x[mine], clips[rows[mine]])
            if change.where is not None:
                mask = change.where[clips[rows[mine]], here].to(x.device)
                new = torch.where(mask[..., None], new, x[mine])
            said[mine] = new
        return _finite(said, heard.site)

    return answering(heard.site, look, norm)


def batches(heard: Heard, changes: Mapping[str, Change], size: int) -> Iterable[list[tuple[str, Tensor]]]:
    """All that has to be run, as lists of (name of a change, its clips) with `size` clips together."""
    batch, room = [], size
    for name, change in changes.items():
        left = np.arange(len(heard)) if change.touched is None else np.flatnonzero(change.touched)
        while len(left):
            mine, left = left[:room], left[room:]
            batch.append((name, torch.from_numpy(mine)))
            room -= len(mine)
            if not room:
                yield batch
                batch, room = [], size
    if batch:
        yield batch


@torch.no_grad()
def tokens(heard: Heard, changes: Mapping[str, Change], batch: int = BATCH, progress: Callable = iter) -> dict:
    """{name: tokens written of each clip} under each change; nothing is run of clips that a change cannot touch."""
    found = {name: list(heard.plain) for name in changes}
    for parts in progress(list(batches(heard, changes, batch))):
        wrote = run_of(heard, [(changes[name], clips) for name, clips in parts]).write()
        for name, clips in parts:
            for clip in clips.tolist():
                found[name][clip] = wrote.pop(0)
    return found


def write(heard: Heard, changes: Mapping[str, Change], batch: int = BATCH, progress: Callable = iter) -> dict:
    """{name: text written of each clip} under each change: see `tokens`."""
    return {name: said(heard, ids) for name, ids in tokens(heard, changes, batch, progress).items()}


@torch.no_grad()
def outcomes(heard: Heard, changes: Mapping[str, Change], batch: int = BATCH, progress: Callable = iter) -> dict:
    """{name: a row a clip} under each change: `wrote`, the greedy transcript; `wrote_or_empty`, the same where an empty
    one is allowed; `no_speech` and `mean_logprob` of the first, see `Decoder.confidence`."""
    parts = {name: [] for name in changes}
    empty = heard.decoder.allowing_empty()
    work = [(name, clips) for name in changes for clips in torch.arange(len(heard)).split(batch)]
    for name, clips in progress(work):
        run = run_of(heard, [(changes[name], clips)])
        tokens = run.write()
        sure = run.confidence(tokens)
        columns = {"wrote": said(heard, tokens), "wrote_or_empty": said(heard, _or_empty(run, empty, tokens, sure))}
        columns |= {"no_speech": sure.no_speech.numpy(), "mean_logprob": sure.mean_logprob.numpy()}
        parts[name].append(pd.DataFrame(columns))
    return {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}


def _or_empty(run: Run, empty: Decoder, tokens: list[list[int]], sure: Confidence) -> list[list[int]]:
    """The transcripts where an empty one is allowed: only those are decoded whose first token is another one then."""
    first = sure.first_token.tolist()
    found = [[] if start == empty.end else one for one, start in zip(tokens, first, strict=True)]
    other = torch.tensor([one[:1] != [start] != [empty.end] for one, start in zip(tokens, first, strict=True)])
    if other.any():
        decoded = run.at(other).write(empty, [tokens[row] for row in other.nonzero().squeeze(1).tolist()])
        for row, one in zip(other.nonzero().squeeze(1).tolist(), decoded, strict=True):
            found[row] = one
    return found


def said(heard: Heard, ids: list[list[int]]) -> list[str]:
    """The texts of tokens, a list a clip."""
    return [one.strip() for one in heard.whisper.require_tokenizer().batch_decode(ids, skip_special_tokens=True)]


# ------------------------------------------------------------------------------------------------ an SAE's codes


class Coded:
    """The codes of an SAE of all frames of what was heard, and edits of them. With `padding` those of padding, too.

    `coder` stays on its own device; where the model lies on another one, a copy of it there does the work.
    `rates` (feature,) is the share of the frames on which each fires. For a site of the decoder nothing is kept,
    because what is said there depends on what was written: codes are made as it speaks.
    """

    @torch.no_grad()
    def __init__(self, heard: Heard, coder, padding: bool = False):
        self.heard, self.coder, self.codes = heard, coder, None
        self.there = coder if coder.W_dec.device == heard.encoded.device else _copied(coder, heard.encoded.device)
        self.frames = torch.ones_like(heard.valid) if padding else heard.valid
        if heard.in_decoder or not heard.direct:
            return
        rows, columns, values = [], [], []
        at = self.frames.flatten().nonzero().squeeze(1)
        for part in at.split(8192):
            clip, frame = part // self.frames.shape[1], part % self.frames.shape[1]
            f = self.there.encode(self._stream(heard.held[clip, frame]))
            row, latent = f.nonzero(as_tuple=True)
            values.append(f[row, latent].cpu().numpy())
            rows.append(part[row.cpu()].numpy())
            columns.append(latent.cpu().numpy())
        entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
        self.codes = csc_array(entries, shape=(self.frames.numel(), coder.d_sae))
        self.rates = np.diff(self.codes.indptr) / max(1, len(at))

    def _stream(self, x: Tensor) -> Tensor:
        if not self.heard.site.endswith(".normed"):
            return x
        return whisper_model.normed(whisper_model.final_norm(self.heard.whisper, self.heard.site), x)[0]

    def of(self, features: Sequence[int], clips: np.ndarray | None = None) -> Tensor:
        """The codes of some features in some clips, all if None: (clip, frame, feature)."""
        clips = np.arange(len(self.heard)) if clips is None else np.asarray(clips)
        return self._rows(self.codes[:, list(features)].tocsr(), clips)

    def _rows(self, codes, clips: np.ndarray) -> Tensor:
        frames = self.frames.shape[1]
        rows = codes[(clips[:, None] * frames + np.arange(frames)).ravel()]
        return torch.from_numpy(rows.toarray()).unflatten(0, (len(clips), frames))

    def fires(self, features: Sequence[int]) -> np.ndarray:
        """In which clips any of the features fires: (clip,) bool."""
        found = np.zeros(len(self.heard), dtype=bool)
        found[np.unique(self.codes[:, list(features)].tocoo().row // self.frames.shape[1])] = True
        return found

    def edit(self, edit: Edit, where: Tensor | None = None, along: Tensor | None = None) -> Change:
        """An edit as a change, on `where` (clip, frame), or all frames that are coded. `along`, (d_sae, width), are
        other directions than the SAE's own, for controls that are as large at the same moments."""
        W_dec = self.there.W_dec if along is None else along.to(self.there.W_dec)
        if self.codes is None:
            return Change(self._as_it_speaks(edit, W_dec), None, where)
        mask = self.frames if where is None else where.cpu() & self.frames
        touched = mask.any(dim=1).numpy()
        if edit.features is None:
            return Change(self._as_it_speaks(edit, W_dec), touched, mask)
        mine = self.codes[:, list(edit.features)].tocsr()
        if not edit.wakes:
            fired = mine.tocoo().row
            touched = np.zeros(len(self.heard), dtype=bool)
            touched[np.unique(fired[mask.flatten().numpy()[fired]] // self.frames.shape[1])] = True

        def see(x: Tensor, clips: Tensor) -> Tensor:
            return x + edit.added(self._rows(mine, clips.numpy()).to(x), clips, W_dec)

        return Change(_in_parts(see, len(edit.features)), touched, mask)

    def _as_it_speaks(self, edit: Edit, W_dec: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        def see(x: Tensor, clips: Tensor) -> Tensor:
            f = self.there.encode(x)
            f = f if edit.features is None else f[..., list(edit.features)]
            return x + edit.added(f, clips, W_dec)

        return _in_parts(see, self.coder.d_sae)

    def spliced(self, everywhere: bool = False) -> Change:
        """The SAE's reconstruction in the place of x; `everywhere`: on the frames of padding, too."""
        where = torch.ones_like(self.frames) if everywhere else None
        return Change(lambda x, _: self.there(x), None, where)


def _in_parts(
    see: Callable[[Tensor, Tensor], Tensor], features: int, most: int = 16_000_000
) -> Callable[[Tensor, Tensor], Tensor]:
    """`see` of a few clips at a time, whose codes of so many features are at most `most` numbers."""

    def see_parts(x: Tensor, clips: Tensor) -> Tensor:
        size = max(1, most // max(1, x.shape[1] * features))
        if size >= len(x):
            return see(x, clips)
        return torch.cat([see(*part) for part in zip(x.split(size), clips.split(size), strict=True)])

    return see_parts


def _copied(coder, device: torch.device):
    return copy.deepcopy(coder).to(device)
