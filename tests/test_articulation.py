"""Labels of three alphabets come to the same sounds, and these to the classes of the IPA's chart."""

import pytest

from whisper_sae import profiles
from whisper_sae.data import frame_alignment, phonology

SAME = {  # IPA, X-SAMPA, ARPABET: the same sound
    "tʃ": ("tS", "CH"), "dʒ": ("dZ", "JH"), "ŋ": ("N", "NG"), "θ": ("T", "TH"), "ð": ("D", "DH"), "ʃ": ("S", "SH"),
    "s": ("s", "S"), "z": ("z", "Z"), "ɡ": ("g", "G"), "ɹ": ("r\\", "R"), "j": ("j", "Y"), "æ": ("{", "AE1"),
    "ʌ": ("V", "AH0"), "iː": ("i:", "IY2"), "ɜː": ("3:", "ER1"), "aɪ": ("aI", "AY1"), "h": ("h", "HH"), "ɪ": ("I", "IH")
}  # fmt: skip


def test_three_alphabets_say_the_same():
    ipa, sampa, arpabet = list(SAME), *zip(*SAME.values(), strict=True)
    found = {name: phonology.classes(names, name) for name, names in
             {"ipa": ipa, "sampa": sampa, "arpabet": arpabet}.items()}  # fmt: skip
    others = [column for column in phonology.COLUMNS if column != "ipa"]
    for name in ("sampa", "arpabet"):
        assert found[name][others].to_numpy().tolist() == found["ipa"][others].to_numpy().tolist(), name
    assert (found["ipa"].manner != "").all()


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("s", ("fricative", "alveolar", "voiceless", "", "")),
        ("t̪", ("stop", "alveolar", "voiceless", "", "")),
        ("ˈb", ("stop", "bilabial", "voiced", "", "")),
        ("t͡ʃ", ("affricate", "postalveolar", "voiceless", "", "")),
        ("ç", ("fricative", "palatal", "voiceless", "", "")),
        ("ɪ", ("vowel", "", "voiced", "close", "front")),
        ("ɑːɹ", ("vowel", "", "voiced", "open", "back")),
        ("ɔ̃", ("vowel", "", "voiced", "mid", "back")),
        ("kʰ", ("stop", "velar", "voiceless", "", "")),
        ("", ("pause", "", "", "", "")),
        ("SIL", ("pause", "", "", "", "")),
        ("5", ("", "", "", "", "")),
    ],
)
def test_a_sound_has_its_classes(label, expected):
    assert tuple(phonology.classes([label], "ipa").iloc[0])[1:] == expected


@pytest.mark.parametrize(
    ("label", "sound"),
    [("!t", "t"), ("tasp", "t"), ("_d", "d"), ("-sth", ""), ("+lar", ""), ("(gef", ""), ("t_h", "t"), ("OY", "ɔ"),
     ("@2", "ə"), ("a#", "a"), ("3:", "ɜ"), ("@`", "ɚ"), ("_", "")],
)  # fmt: skip
def test_marks_of_the_sampa_family_are_passed_over(label, sound):
    assert phonology.classes([label], "sampa").ipa.tolist() == [sound]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["tasp", "!t", "aI", "-sth", "+lar,-hoe", "<p>", "OY"], ["t", "t", "aɪ", "", "", "", "ɔʏ"]),
        (["aU +beh 2", "E +lar 1", "d -eng]", "I 3", "n +:", "!b+na", "t_+"], ["aʊ", "ɛ", "d", "ɪ", "n", "b", "t"]),
        (["AY1", "SIL", "S", "HH", "t"], ["aɪ", "", "s", "h", "t"]),
        (["aɪ", "tʰ", "sil", "?!"], ["aɪ", "tʰ", "", "?!"]),  # in IPA already
        (["NA", "null", "p1", "a:", "6_^"], ["NA", "null", "p1", "aː", "ɐ"]),  # what is no phone is left as it is
        (["AY1", "S", "T", "HH", "R", "K", "D", "B", "P", "laugh"], ["aɪ", *"sthɹkdbp", "laugh"]),
        ([], []),
    ],
)
def test_labels_are_spelled_in_ipa(labels, expected):
    assert phonology.ipa(labels) == expected


@pytest.mark.parametrize(
    ("labels", "alphabet"),
    [
        (["AA1", "S", "T", "sil", "HH"], "arpabet"),
        (["h#", "iy", "tcl", "t", "axr"], "arpabet"),
        (["s", "ɪ", "t"], "ipa"),
        (["s", "I", "t", "@", "tS"], "sampa"),
        (["s", "t"], "sampa"),
        ([], "sampa"),
    ],
)
def test_the_alphabet_is_seen(labels, alphabet):
    assert phonology.seems(labels) == alphabet
    assert len(phonology.classes(labels)) == len(labels)


def test_each_label_stands_once_in_order():
    found = phonology.classes(["t", "s", "t"], "ipa")
    assert found.index.tolist() == ["t", "s"] and found.manner["s"] == "fricative"
    with pytest.raises(ValueError, match="alphabet: 'runes' is not one of ipa, sampa, arpabet"):
        phonology.classes(["t"], "runes")


def test_the_chart_has_each_sound_once():
    cells = [cell.split() for line in phonology.CONSONANTS.split("\n") for cell in line.split(": ")[-1].split(", ")]
    symbols = [symbol for cell in cells for symbol in cell[1:] if symbol != "-"]
    symbols += [s for cell in phonology.VOWELS.split()[2::3] for s in cell]
    assert len(symbols) == len(set(symbols)) == len(phonology.TABLE) > 90


def test_the_demo_has_the_same_manners():
    """Its own were written by who made its speech; there alone the r of its Scots is an approximant."""
    told = frame_alignment.read(profiles.DEMO / "corpus").drop_duplicates(["ipa", "manner"])
    found = phonology.classes(told.ipa).loc[told.ipa]
    differ = {(s, m, f) for s, m, f in zip(told.ipa, told.manner, found.manner, strict=True) if m != f}
    assert differ == {("r", "approximant", "trill")}


def test_hand_made_labels_of_german_are_read(shared):
    told = frame_alignment.read(shared / "speech" / "emodb-german-aligned")
    marks = told.phone.str.match(r"[-+(]|\s*$")
    manner = phonology.classes(told.phone, "sampa").manner.loc[told.phone].to_numpy()
    assert (manner[~marks] != "").mean() > 0.99 and (manner[marks] != "").sum() == 0
