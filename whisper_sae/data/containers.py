"""What an MP3 or Ogg file holds, counted without decoding: for what a decoder leaves out without saying so.

A decoder of MP3 believes the length in the first frame, or guesses it from the first bit rate: of two files that were
joined, or of a variable rate whose first frame is gone, it gives a part. Of chained Ogg streams it gives the first.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BIT_RATES = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Kilobits a second of Layer III, by version of MPEG; 2.5 has those of 2 (ISO/IEC 11172-3 and 13818-3)."""
RATES = (44_100, 48_000, 32_000)
SLACK = 4
"""Frames that a decoder may leave out at the ends: the encoder's delay and padding, and one that is not whole."""


class Frame(NamedTuple):
    """One frame of MPEG Layer III."""

    start: int
    length: int
    rate: int
    samples: int
    told: int | None
    """In the frame that says how many others there are: that number, 0 where it does not say; None in all others."""


def fault(path: str | Path, heard: int) -> str:
    """What is wrong with a file of which so many samples were decoded, in one line; "" if nothing is, or it is neither
    MP3 nor Ogg."""
    with open(path, "rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            return ""
        with content:
            if content[:4] == b"OggS":
                return _fault_of_ogg(content)
            return _fault_of_mp3(content, heard)


def _fault_of_ogg(content) -> str:
    begun = last = False
    for first, end in _ogg_pages(content):
        if first and begun:
            return "several Ogg streams follow each other, of which the first alone is decoded; part or convert them"
        begun, last = begun or not first, end
    return "" if last else "truncated Ogg: the page that ends the stream is not there; convert it to keep what is"


def _ogg_pages(content) -> Iterator[tuple[bool, bool]]:
    """Of each whole page, whether a stream begins with it, and whether one ends (RFC 3533, section 6)."""
    at = 0
    while (at := content.find(b"OggS", at)) >= 0 and at + 27 <= len(content):
        flags, segments = content[at + 5], content[at + 26]
        at += 27 + segments + sum(content[at + 27 : at + 27 + segments])
        if at <= len(content):
            yield bool(flags & 2), bool(flags & 4)


def _fault_of_mp3(content, heard: int) -> str:
    frames, told, rates, samples = 0, [], set(), 0
    for frame in mp3_frames(content):
        if frame.told is not None:
            told.append(frame.told)
            continue
        frames, samples = frames + 1, samples + frame.samples
        rates.add(frame.rate)
    if not frames:
        return ""
    each, (rate, *others) = samples // frames, rates
    if others:
        return f"MP3 frames of {len(rates)} sampling rates follow each other: several files were joined; convert it"
    if told and told[0] > frames + SLACK:
        return f"truncated MP3: {frames:,} of {told[0]:,} frames are there"
    if samples > heard + SLACK * each:
        joined = "several files were joined" if len(told) > 1 else "its length is not told rightly"
        return f"{heard / rate:.2f} of the {samples / rate:.2f} s of an MP3 are decoded: {joined}; convert it"
    return ""


def mp3_frames(content) -> Iterator[Frame]:
    """The frames of an MP3 file, past tags and what is damaged between them."""
    at = 10 + _synchsafe(content[6:10]) if content[:3] == b"ID3" else 0
    sure = False
    while at + 4 <= len(content):
        frame = _frame(content, at)
        # in the middle of anything two bytes look like a frame now and then, and hardly ever another follows
        if frame and (sure or at + frame.length >= len(content) or _frame(content, at + frame.length)):
            yield frame
            at, sure = at + frame.length, True
            continue
        if content[at : at + 3] == b"ID3":  # of a file that was joined
            at, sure = at + 10 + _synchsafe(content[at + 6 : at + 10]), False
            continue
        at, sure = content.find(b"\xff", at + 1), False
        if at < 0:
            return


def _frame(content, at: int) -> Frame | None:
    head = content[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:  # eleven bits set, Layer III
        return None
    version, rate, kilobits = head[1] >> 3 & 3, head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or rate == 3 or kilobits in (0, 15):
        return None
    first = version == 3
    hertz = RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    length = (144 if first else 72) * BIT_RATES[1 if first else 2][kilobits] * 1000 // hertz + (head[2] >> 1 & 1)
    mono = head[3] >> 6 == 3
    side = (17 if mono else 32) if first else (9 if mono else 17)
    return Frame(at, length, hertz, 1152 if first else 576, _told(content, at + 4 + side, at + 36))


def _told(content, xing: int, vbri: int) -> int | None:
    if content[xing : xing + 4] in (b"Xing", b"Info"):
        counted = content[xing + 7] & 1 if len(content) > xing + 12 else 0
        return int.from_bytes(content[xing + 8 : xing + 12]) if counted else 0
    if content[vbri : vbri + 4] == b"VBRI":
        return int.from_bytes(content[vbri + 14 : vbri + 18])
    return None


def _synchsafe(four: bytes) -> int:
    return sum((byte & 127) << shift for byte, shift in zip(four, (21, 14, 7, 0), strict=False))
