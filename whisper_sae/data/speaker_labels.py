"""Which labels of speakers can be asked about, of which of their groups, and why others cannot.

chosen = speaker_labels.choose(clips)      # clips: a row a clip, with `speaker`, labels, and perhaps `corpus`
chosen.values                              # (clip, label): what may be compared, "" for what is left out
chosen.report                              # a row a column: asked or not, and what was left out and why
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from whisper_sae.stats import effects
from whisper_sae.stats.intervals import LEAST

MOST_GROUPS = 12
"""Of a label with more groups, those with most speakers are compared."""

NOT_LABELS = {"id", "path", "text", "speaker", "split", "duration", "corpus", "gender_from"}
"""Columns of the table of clips that are no labels of a speaker."""

ALWAYS = ("gender", "accent")
"""Labels that come first, and of which it is said, too, that a corpus does not have them."""


class Chosen(NamedTuple):
    """Labels of clips that group their speakers."""

    values: pd.DataFrame
    """(clip, label) str, tidied; "" where a clip has none, its speaker has two, or its group is left out."""
    report: pd.DataFrame
    """A row a column of the table of clips: label, asked ("yes", "no", or "by probes alone" where fewer than two groups
    have LEAST speakers), groups, speakers, and a note of what was left out, or why it is not asked."""
    corpus: np.ndarray | None
    """(clip,) the corpus of each, where speakers come from several; else None."""


def choose(clips: pd.DataFrame, most: int = MOST_GROUPS) -> Chosen:
    """The columns that group speakers, gender and accent first.

    A speaker with two values of a label is left out of it, unless most have: then it is a label of clips. Of more than
    `most` groups the largest are kept. Where speakers come from several corpora, a corpus that has one group only is
    left out, since there the label is the corpus.
    """
    who = effects.named_as(clips.speaker)
    corpus = _several(clips, who)
    names = sorted(set(clips) - NOT_LABELS | set(ALWAYS), key=lambda name: (name != "gender", name != "accent", name))
    values, rows, numbers, empty = {}, [], [], []
    for name in names:
        column = effects.tidy(clips[name]) if name in clips else np.full(len(clips), "")
        column = np.where(who != "", column, "").astype(str)
        if is_numeric(column):
            numbers.append(name)
            continue
        column, why, notes = one_label(column, who, corpus, most)
        if name == "gender" and "gender_from" in clips:
            notes = [*notes, *(f"from {source}" for source in sorted(set(clips.gender_from) - {""}))]
        if not why:
            values[name] = column
        if not why or name in ALWAYS or column.any():
            groups = speakers_of(column, who)
            note = "; ".join([why, *notes] if why else notes)
            rows.append((name, _asked(why, groups), len(groups), int(groups.sum()), note))
        else:
            empty.append(name)
    if empty:
        rows.append((", ".join(empty), "no", 0, 0, "no clip of a named speaker has a value"))
    if numbers:
        rows.append((", ".join(numbers), "no", 0, 0, "numbers: to be held fixed, not compared"))
    report = pd.DataFrame(rows, columns=["label", "asked", "groups", "speakers", "note"])
    return Chosen(pd.DataFrame(values, index=clips.index), report, corpus)


def one_label(column: np.ndarray, who: np.ndarray, corpus=None, most: int = MOST_GROUPS) -> tuple:
    """One tidied label (clip,) of speakers (clip,): what may be compared, why not ("" if it may), and what is left out.

    The first is (clip,) str, "" for what is left out; the last a list of notes.
    """
    pairs = pd.DataFrame({"who": who, "value": column, "row": 1})[column != ""]
    if pairs.empty:
        return column, "no clip of a named speaker has a value", []
    each = pairs.groupby("who").agg(values=("value", "nunique"), clips=("row", "size"))
    twice = each.index[each["values"] > 1]
    if len(twice) and 2 * len(twice) >= (each.clips > 1).sum() and len(twice) > 1:
        return column, f"{len(twice)} of {len(each)} speakers have several values: a label of clips", []
    notes = []
    if len(twice):
        both = pairs[pairs.who.isin(twice)].groupby("who").value.agg(lambda v: " and ".join(sorted(set(v))))
        names = [f"{_short(name)} ({values})" for name, values in both.items()]
        notes.append("left out, since they have two values: " + listed(names))
    column, alone = _comparable(one_value_each(column, who), who, corpus)
    if alone:
        notes.append("a single group, so nothing to compare, in " + listed(alone))
    groups = speakers_of(column, who)
    if len(groups) > most:
        rest = [f"{name} ({count})" for name, count in groups[most:].items()]
        notes.append(f"the {most} groups with most speakers; left out: " + listed(rest, 8))
        column, more = _comparable(np.where(np.isin(column, groups.index[:most]), column, ""), who, corpus)
        notes += ["then a single group in " + listed(more)] if more else []
        groups = speakers_of(column, who)
    if len(groups) < 2 and alone:
        return column, "every corpus has a single group of it, so it cannot be told from the corpus", notes
    if len(groups) < 2:
        return column, "a single group" + "".join(f": {name}" for name in groups.index), notes
    if groups.iloc[1] < 2:
        return column, "no two groups have two speakers", notes
    return column, "", notes


def one_value_each(column: np.ndarray, who: np.ndarray) -> np.ndarray:
    """A tidied label (clip,) without speakers (clip,) who have two values of it; a clip of nobody keeps its own."""
    pairs = pd.DataFrame({"who": who, "value": column})[(column != "") & (who != "")].drop_duplicates()
    return np.where(np.isin(who, pairs.who[pairs.who.duplicated()]), "", column)


def for_probe(column: np.ndarray, who: np.ndarray, corpus=None) -> tuple[np.ndarray, str]:
    """A label of `one_label`, without the groups that a probe cannot be asked about; and why it cannot at all, or "".

    Kept are groups of LEAST speakers, or of two where fewer than two groups have so many; where there are several
    corpora, of two speakers in a corpus, and only corpora with two such groups.
    """
    groups = speakers_of(column, who)
    least = LEAST if (groups >= LEAST).sum() > 1 else 2
    column = np.where(np.isin(column, groups.index[groups >= least]), column, "")
    if corpus is not None:
        table = pd.DataFrame({"corpus": corpus, "value": column, "who": who})
        size = table.groupby(["corpus", "value"]).who.transform("nunique").to_numpy()
        column, _ = _comparable(np.where(size > 1, column, ""), who, corpus)
    groups = speakers_of(column, who)
    if len(groups) < 2:
        return column, "fewer than two groups have two speakers" + (" in one corpus" if corpus is not None else "")
    return column, ""


def _several(clips: pd.DataFrame, who: np.ndarray) -> np.ndarray | None:
    """(clip,) corpora, where named speakers come from two or more."""
    if "corpus" not in clips or clips.corpus[who != ""].nunique() < 2:
        return None
    return clips.corpus.to_numpy(dtype=str)


def _asked(why: str, groups: pd.Series) -> str:
    return "no" if why else "yes" if (groups >= LEAST).sum() > 1 else "by probes alone"


def is_numeric(column: np.ndarray) -> bool:
    known = pd.Series(column[column != ""])
    return len(known) > 0 and bool(pd.to_numeric(known, errors="coerce").notna().all())


def speakers_of(column: np.ndarray, who: np.ndarray) -> pd.Series:
    """How many speakers each group has, the largest first, then in order of names."""
    known = (column != "") & (who != "")
    counts = pd.Series(who[known]).groupby(column[known]).nunique()
    return counts.sort_index().sort_values(ascending=False, kind="stable")


def _comparable(column: np.ndarray, who: np.ndarray, corpus) -> tuple[np.ndarray, list[str]]:
    """The label without corpora that have a single group of it, and these."""
    if corpus is None:
        return column, []
    known = (column != "") & (who != "")
    groups = pd.Series(column[known]).groupby(corpus[known]).nunique()
    alone = sorted(groups.index[groups == 1])
    return np.where(np.isin(corpus, alone), "", column), alone


def listed(names: list[str], most: int = 5) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:12]}…"
