"""Turn features of one clip up or down by hand, and read what Whisper then writes.

told = steering.steer(whisper, coder, "encoder.2.resid", sound, {267: 0.0, 194: -1.0})
told.plain, told.resaid, told.edited                        # three transcripts
told.tracks[267]                                            # (frame,): what the feature says of the clip
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from whisper_sae.causal import edits, patching


class Steered(NamedTuple):
    """What is written of a clip as it is, with the SAE's reconstruction in the place of the layer, and with the
    edit."""

    plain: str
    resaid: str
    edited: str
    tracks: dict[int, np.ndarray]
    """What each feature says on each valid frame, (frame,), before the edit."""
    after: dict[int, np.ndarray]
    """The same after it."""
    frame_seconds: float


def steer(whisper, coder, site: str, sound: np.ndarray, scales: Mapping[int, float], *, seconds: tuple = (0.0, np.inf),
          batch: int = patching.BATCH, language: str = "en") -> Steered:  # fmt: skip
    """Each feature of `scales` times its factor in one clip, (sample,) of 16 kHz; the SAE's error stays.

        Only frames whose centre is within `seconds` are edited; the clip is decoded in `language`, a code. An empty
    `scales` changes nothing. Raises BadModel for a clip that is longer than a window or a site that there is not;
    ValueError for a feature that the SAE does not have, or for a site that is not a stream of the encoder (embed,
    resid, normed), since nothing is said of frames there.
    """
    if lost := [feature for feature in scales if not 0 <= feature < coder.d_sae]:
        raise ValueError(f"scales: there is no feature {lost[0]}; the SAE has {coder.d_sae}")
    heard = patching.hear(whisper, [sound], [site], languages=[language])[site]
    if heard.in_decoder or not heard.direct:
        raise ValueError(f"site: {site} is not embed, resid or normed of the encoder; steer it with `patching`")
    coded, hop = patching.Coded(heard, coder), whisper.samples_a_frame / 16_000
    where = edits.spans(1, whisper.positions, [0], [seconds[0]], [min(seconds[1], whisper.positions * hop)], hop)
    edit = edits.scale(dict(scales))
    changes = {"resaid": coded.spliced()} | ({"edited": coded.edit(edit, where)} if scales else {})
    wrote = patching.write(heard, changes, batch)
    plain = patching.said(heard, heard.plain)[0]
    valid = heard.valid[0]
    codes = coded.of(edit.features)[0] if scales else torch.zeros(len(valid), 0)
    turned = torch.where(where[0][:, None], edit.become(codes, torch.tensor([0])), codes) if scales else codes
    tracks, after = ({feature: part[valid, n].numpy() for n, feature in enumerate(scales)} for part in (codes, turned))
    return Steered(plain, wrote["resaid"][0], wrote["edited"][0] if scales else plain, tracks, after, hop)
