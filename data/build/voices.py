"""Voices: what each one is, drawn from the same two families (voice gender of the synthesiser) and six accents.

Gender moves pitch, pitch range, the synthesiser's variant and the length of the vocal tract; accent is espeak-ng's own
(phones, vowel qualities, some rhythm); everything else — rate, loudness, microphone, the null label — is drawn without
looking at either, so that what a method finds can be held against what was planted.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np

ACCENTS = {
    "american": "en-us",
    "received": "en-gb-x-rp",
    "scottish": "en-gb-scotland",
    "lancaster": "en-gb-x-gbclan",
    "west midlands": "en-gb-x-gbcwmd",
    "caribbean": "en-029",
}
VARIANTS = {"female": ["f1", "f2", "f3", "f4", "f5"], "male": ["m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"]}
TRACT = {"female": (441, 500), "male": (390, 450)}  # of 441: formants up by this factor
TILT = {"near": (0.0, 2.6), "far": (3.8, 6.4)}  # dB an octave, above 1 kHz, that the microphone takes away
PITCH = {"female": (35, 75), "male": (25, 60)}  # espeak's own scale, relative to the variant


@dataclass(frozen=True)
class Voice:
    """What a speaker is. `null` relates to nothing; `mic` says only how much of the high frequencies is lost."""

    speaker: str
    gender: str
    accent: str
    variant: str
    pitch: int
    range: int
    rate: int
    tract: int
    level_db: float
    tilt_db: float = 0.0
    mic: str = ""
    null: str = ""

    @property
    def name(self) -> str:
        """What espeak-ng calls it."""
        return f"{ACCENTS[self.accent]}+{self.variant}"

    def as_row(self) -> dict:
        return asdict(self)


def draw_voice(rng: np.random.Generator, speaker: str = "", gender: str = "", accent: str = "") -> Voice:
    """A voice of the families; what is not given is drawn."""
    gender = gender or ("female", "male")[rng.integers(2)]
    accent = accent or list(ACCENTS)[rng.integers(len(ACCENTS))]
    variants = VARIANTS[gender]
    level = rng.uniform(-32, -18)  # dB of full scale, RMS over the speech
    return Voice(
        speaker=speaker,
        gender=gender,
        accent=accent,
        variant=variants[rng.integers(len(variants))],
        pitch=int(rng.integers(*PITCH[gender])),
        range=int(rng.integers(30, 80)),
        rate=int(rng.integers(135, 200)),
        tract=int(rng.integers(*TRACT[gender])),
        level_db=round(float(level), 2),
    )


def corpus_voices(each: int = 4, seed: int = 3) -> list[Voice]:
    """`each` voices, a multiple of four, in every accent × gender. In each such group every pair of microphone ("near",
    "far") and null label ("a", "b") is equally frequent, and chance says which voice has which: so neither can stand
    for gender, for accent or for the other."""
    rng = np.random.default_rng([seed, 1])
    pairs = [(mic, null) for mic in ("near", "far") for null in ("a", "b")] * (each // 4)
    voices = []
    for accent in ACCENTS:
        for gender in VARIANTS:
            for pair in rng.permutation(len(pairs)):
                mic, null = pairs[pair]
                drawn = draw_voice(rng, f"v{len(voices):02d}", gender, accent)
                tilt = rng.uniform(*TILT[mic])
                voices.append(replace(drawn, tilt_db=round(float(tilt), 2), mic=mic, null=null))
    return voices


def splits(voices: list[Voice], seed: int = 3) -> dict[str, str]:
    """speaker -> train, validation or test: of each accent one voice is tested and one validated, genders in turn, so
    that both small splits hold as many women as men and every accent."""
    rng = np.random.default_rng([seed, 2])
    where = {voice.speaker: "train" for voice in voices}
    for number, accent in enumerate(ACCENTS):
        for shift, name in enumerate(("validation", "test")):
            gender = ("female", "male")[(number + shift) % 2]
            group = [v.speaker for v in voices if (v.accent, v.gender) == (accent, gender)]
            where[group[rng.integers(len(group))]] = name
    return where
