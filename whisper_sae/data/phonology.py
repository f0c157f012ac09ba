"""How a phone is made: manner, place, voicing, height and backness, of labels in IPA, SAMPA or ARPABET.

A small table of the International Phonetic Alphabet (chart of 2020), and two more that lead there: X-SAMPA, with what
corpora of its family add (Kiel's marks, eSpeak's names), and ARPABET, with what TIMIT adds. Marks of length, stress and
secondary articulation are passed over. Of a label with several sounds the first counts, `aɪ` is open and front, unless
they make an affricate, `tʃ`. Vowels have three heights, so that each has enough of them.
"""

import re
import unicodedata
from collections.abc import Iterable

import pandas as pd

COLUMNS = ("ipa", "manner", "place", "voicing", "height", "backness")

# a row: a manner, then places, each with its voiceless and its voiced sound; - for none
CONSONANTS = """
stop: bilabial p b, alveolar t d, retroflex ʈ ɖ, palatal c ɟ, velar k ɡ, uvular q ɢ, glottal ʔ -
affricate: labiodental pf -, alveolar ts dz, postalveolar tʃ dʒ, palatal tɕ dʑ, retroflex tʂ dʐ
nasal: bilabial - m, labiodental - ɱ, alveolar - n, retroflex - ɳ, palatal - ɲ, velar - ŋ, uvular - ɴ
trill: bilabial - ʙ, alveolar - r, uvular - ʀ
tap: labiodental - ⱱ, alveolar - ɾ, alveolar - ɺ, retroflex - ɽ
fricative: bilabial ɸ β, labiodental f v, dental θ ð, alveolar s z, alveolar ɬ ɮ, postalveolar ʃ ʒ, retroflex ʂ ʐ
fricative: palatal ç ʝ, palatal ɕ ʑ, velar x ɣ, labiovelar ʍ -, uvular χ ʁ, pharyngeal ħ ʕ, glottal h ɦ
approximant: labiodental - ʋ, alveolar - ɹ, alveolar - l, alveolar - ɫ, retroflex - ɻ, retroflex - ɭ
approximant: palatal - j, palatal - ɥ, palatal - ʎ, velar - ɰ, velar - ʟ, labiovelar - w
"""

VOWELS = """
close front iyɪʏ  close central ɨʉᵻᵿ    close back ɯuʊ
mid   front eøɛœ  mid   central ɘɵəɜɞɚɝ mid   back ɤoʌɔ
open  front æaɶ   open  central ɐ       open  back ɑɒ
"""


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in text.split())


SAMPA = _pairs(
    "T=θ D=ð S=ʃ Z=ʒ C=ç X=χ G=ɣ R=ʁ N=ŋ J=ɲ L=ʎ 4=ɾ r\\=ɹ ?=ʔ h\\=ɦ B=β p\\=ɸ P=ʋ v\\=ʋ F=ɱ H=ɥ W=ʍ M=ɯ K=ɬ "
    "s\\=ɕ z\\=ʑ j\\=ʝ R\\=ʀ l\\=ɺ g=ɡ I=ɪ E=ɛ {=æ A=ɑ Q=ɒ O=ɔ U=ʊ V=ʌ @=ə 3=ɜ 6=ɐ 2=ø 9=œ Y=ʏ 1=ɨ }=ʉ 7=ɤ 8=ɵ &=ɶ "
    "@`=ɚ 3`=ɝ 0=ɒ :=ː"
)

ARPABET = _pairs(
    "aa=ɑ ae=æ ah=ʌ ao=ɔ aw=aʊ ax=ə axr=ɚ ax-h=ə ay=aɪ eh=ɛ er=ɝ ey=eɪ ih=ɪ ix=ɨ iy=i ow=oʊ oy=ɔɪ uh=ʊ uw=u ux=ʉ "
    "b=b ch=tʃ d=d dh=ð dx=ɾ el=l em=m en=n eng=ŋ f=f g=ɡ hh=h hv=ɦ jh=dʒ k=k l=l m=m n=n ng=ŋ nx=n p=p q=ʔ r=ɹ s=s "
    "sh=ʃ t=t th=θ v=v w=w wh=ʍ y=j z=z zh=ʒ bcl=b dcl=d gcl=ɡ pcl=p tcl=t kcl=k"
)

PAUSES = {"sil", "sp", "spn", "pau", "epi", "h#", "#h", "_", "<p:>", "<p>", "nsn", "<sil>", "sil.", "pause", "#"}


def _table() -> dict[str, tuple[str, ...]]:
    found = {}
    for line in CONSONANTS.strip().splitlines():
        manner, _, cells = line.partition(": ")
        for place, *pair in map(str.split, cells.split(", ")):
            for symbol, voicing in zip(pair, ("voiceless", "voiced"), strict=True):
                found[symbol] = (manner, place, voicing, "", "")
    cells = VOWELS.split()
    for height, backness, symbols in (cells[at : at + 3] for at in range(0, len(cells), 3)):
        found |= {symbol: ("vowel", "", "voiced", height, backness) for symbol in symbols}
    del found["-"]
    return found


TABLE = _table()
"""Of a sound in IPA: manner, place, voicing, height and backness; "" where that is not asked of its kind."""


def classes(labels: Iterable[str], alphabet: str = "") -> pd.DataFrame:
    """A row a label, in order of appearance, once each: COLUMNS; "" for what is not known or does not apply.

    `alphabet` is ipa, sampa or arpabet; without it, the one that the labels seem to be in. Silence is of the manner
    "pause". Raises ValueError for another alphabet.
    """
    names = list(dict.fromkeys(map(str, labels)))
    alphabet = alphabet or seems(names)
    if alphabet not in READERS:
        raise ValueError(f"alphabet: {alphabet!r} is not one of {', '.join(READERS)}")
    rows = []
    for name in names:
        sound = "" if _is_pause(name) else _first(READERS[alphabet](name))
        rows.append((sound, *(("pause", *[""] * 4) if _is_pause(name) else TABLE.get(sound, [""] * 5))))
    return pd.DataFrame(rows, columns=COLUMNS, index=pd.Index(names, name="label", dtype=str))


def ipa(labels: Iterable[str], alphabet: str = "") -> list[str]:
    """Each label as a whole in IPA, `aɪ` for `aI` and `AY1`: (label,); "" for a pause and for a mark that is no sound,
    such as Kiel's. What is no phone of the alphabet is left as it is."""
    names = [str(label) for label in labels]
    alphabet = alphabet or seems(dict.fromkeys(names))
    read = {}
    for name in dict.fromkeys(names):
        sound = "" if _is_pause(name) else READERS[alphabet](name)
        read[name] = sound if not sound or _is_one(sound) else name
    return [read[name] for name in names]


def _is_one(ipa: str) -> bool:
    """Whether this is one phone: one sound of the table, or vowels that glide into each other."""
    bare = "".join(c for c in ipa if unicodedata.category(c) not in ("Mn", "Lm", "Sk"))
    return bare in TABLE or (bare != "" and all(TABLE.get(letter, " ")[0] == "vowel" for letter in bare))


def seems(labels: Iterable[str]) -> str:
    """The alphabet in which labels seem to be: arpabet if it has nearly all, ipa if any has its letters, else sampa."""
    names = [name for name in labels if name and not _is_pause(name)]
    known = sum(_plain(name) in ARPABET for name in names)
    if any(len(_plain(name)) > 1 for name in names) and known >= 0.9 * len(names):
        return "arpabet"
    return "ipa" if any(not letter.isascii() for name in names for letter in name) else "sampa"


def _is_pause(name: str) -> bool:
    return not name or name.lower() in PAUSES


def _plain(name: str) -> str:
    return re.sub(r"\d$", "", name.lower())


def _of_sampa(name: str) -> str:
    if name[0] in "+-(" and len(name) > 1:  # Kiel: a mark, no sound
        return ""
    name = re.sub(r"(?<=[^_])( *[+-]\[?[a-z:].*| \d)$", "", name)  # Kiel: voice quality, `aU +beh 2`; length, `I 3`
    bare = re.sub(r"^[!_](?=.)|asp$|_.", "", name)  # Kiel: a release, a closure, aspiration; X-SAMPA: a diacritic
    return "".join(SAMPA.get(part, part) for part in re.findall(r"[@3]`|[a-zA-Z]\\|.", bare))


READERS = {"ipa": lambda name: name, "sampa": _of_sampa, "arpabet": lambda name: ARPABET.get(_plain(name), name)}
"""From a label to IPA."""


def _first(ipa: str) -> str:
    """The first sound of a label in IPA, an affricate as a whole; "" if there is none that the table has."""
    kept = "".join(c for c in unicodedata.normalize("NFC", ipa) if unicodedata.category(c) not in ("Mn", "Lm", "Sk"))
    kept = kept.replace("g", "ɡ").lstrip("ˈˌ'\"")
    return next((kept[:size] for size in (2, 1) if kept[:size] in TABLE), "")
