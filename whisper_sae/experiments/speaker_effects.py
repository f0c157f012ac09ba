"""Groups of speakers compared in every feature of a site, each number beside what chance gives.

`voices` makes speakers of clips; what is asked here glues them to `effects`, `intervals`, `relabelling` and
`held_fixed`, and says it in tables:

    found = contrasts.two(cast, "gender", strata="accent")         # a row a feature
    found = contrasts.many(cast, "accent")
    table = contrasts.held(cast, ["gender", "mic"], covariates)    # what is left with each held fixed, or matched
"""

import contextlib
import itertools
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from whisper_sae.experiments.speakers import asked, compared, groups_of
from whisper_sae.stats import covariates, effects, intervals, matching, permutation, power, stratified


class Found(NamedTuple):
    """Two groups in every feature that can be asked about."""

    table: pd.DataFrame
    """A row a feature that was tested, the greatest |d| first: feature, d, low, high, g, auc, auc_low, auc_high, mean
    and n of either group (`one`, `other`), p, q, p_family; with strata also `interaction`, the p of `crossing`."""
    chance: permutation.Relabelled


MOST_DEALS = 50_000


def enough_deals(features: int) -> int:
    """10,000, and 24 for each feature where that is more, up to MOST_DEALS.

    No p is below 1 / deals, and with fewer a single feature could not be found at a false discovery rate of 5 %.
    """
    return int(min(MOST_DEALS, max(10_000, 24 * features)))


def strata_of(cast: effects.Voices, label: str = "") -> np.ndarray | None:
    """(speaker,) what is held fixed: the corpus, where there are several, and the groups of a label, if one is named.

    "" for a speaker of whom one of them is not known; None where nothing is held fixed.
    """
    if label == "corpus" and "corpus" not in cast.labels:
        label = ""  # held fixed in any case
    parts = ([] if cast.corpus is None else [cast.corpus]) + ([cast.labels[label].to_numpy(dtype=str)] if label else [])
    if not parts:
        return None
    both = np.array([" / ".join(names) for names in zip(*parts, strict=True)])
    return np.where(np.all([part != "" for part in parts], axis=0), both, "")


def two(cast: effects.Voices, label: str, strata: str = "", seed: int = 0, deals: int = 0) -> Found:
    """Two groups of speakers compared in every living feature, and what `deals` random labellings give.

    With `strata`, or where there are several corpora, d, g and AUC are those within strata, d being partial, and its
    interval that of a noncentral t, exact for normal features. Raises ValueError where a group has fewer than
    `intervals.LEAST` speakers, or no stratum has both.
    """
    by = strata_of(cast, strata)
    told = cast.labels[label] if by is None else cast.labels[label].where(by != "", "")
    groups, tested = groups_of(cast, label), asked(cast, label)
    told = compared(cast, told.to_numpy(dtype=str), groups)
    deals = deals or enough_deals(tested.sum())
    chance = permutation.relabelled(cast.means, told, groups, by, tested=tested, deals=deals, seed=seed)
    here = np.flatnonzero(chance.tested)
    x = cast.means[:, here]
    known = effects.between(x, told, groups)
    if by is not None:
        inside = stratified.within(x, told, by, groups)
        known = known._replace(auc=stratified.auc(x, told, by, groups), g=inside.d * (1 - 3 / (4 * inside.df - 1)))
        low, high = intervals.noncentral(inside.d, np.square(inside.t / inside.d), inside.df)
    else:
        low, high = intervals.of_d(x, told, groups, seed=seed)[1:]
    of_auc = intervals.of_auc(known.auc, *known.n)
    table = pd.DataFrame({"feature": here, "d": chance.d[here], "low": low, "high": high, "g": known.g})
    table = table.assign(auc=known.auc, auc_low=of_auc.low, auc_high=of_auc.high, one=known.means[0])
    table = table.assign(other=known.means[1], n_one=known.n[0].astype(int), n_other=known.n[1].astype(int))
    table = table.assign(p=chance.p[here], q=chance.q[here], p_family=chance.p_family[here])
    table = table.assign(interaction=inside.interaction) if by is not None else table
    order = table.d.abs().sort_values(ascending=False, kind="stable").index
    return Found(table.loc[order].reset_index(drop=True), chance)


SPLITS = 20
"""How often speakers are split into halves to see what the foremost features come to on other speakers."""


def foremost(cast: effects.Voices, label: str, strata: str = "", seed: int = 0, splits: int = SPLITS,
             most: int = 3) -> pd.DataFrame:  # fmt: skip
    """The features of greatest |d| between two groups, and what such a choice comes to on speakers that did not make
    it: a row a feature, as many as `most`.

    The d of a feature that is chosen because it is the greatest is too great (winner's curse). So `splits` times
    speakers are split into halves at random, evenly within groups, strata and corpora. On one half features are ranked
    by |d|; `other` is the d, on the other half, of the feature of this rank there, above 0 in the direction in which it
    was chosen, with Hedges' correction, since halves are small. It is the mean over halves, both of each split choosing
    in turn: 0 on average where groups do not differ, however many features there are, and less than the true d where
    half of the speakers are too few to choose the right feature. `low` to `high` hold 95 % of the halves.

    `d` is |d| of `feature` over all speakers, `group` has more of it, and `again` is the share of halves that choose
    it, in any rank; `n_one` and `n_other` are speakers. ValueError where a group has fewer than 2 · `intervals.LEAST`.
    """
    by = strata_of(cast, strata)
    by = np.full(len(cast.means), "all") if by is None else by
    groups = groups_of(cast, label)
    told = compared(cast, np.where(by != "", cast.labels[label].to_numpy(dtype=str), ""), groups)
    n = [int((told == name).sum()) for name in groups]
    if min(n) < 2 * intervals.LEAST:
        counts = " and ".join(f"{count} {name}" for count, name in zip(n, groups, strict=True))
        raise ValueError(f"{label}: half of {counts} speakers are fewer than {intervals.LEAST} of a group")
    cast = cast._replace(labels=cast.labels.assign(**{label: told}))
    whole, tested = stratified.within(cast.means, told, by, groups).d, asked(cast, label)
    first = _greatest(whole, tested, most)
    rng, chosen, scored = np.random.default_rng(seed), [], []
    for _ in range(splits):
        half = _halves(told, by, rng)
        parts = [_of(cast, half == side) for side in (0, 1)]
        able = tested & np.logical_and(*(asked(part, label) for part in parts))
        found = [stratified.within(part.means, part.labels[label], by[half == side], groups)
                 for side, part in enumerate(parts)]  # fmt: skip
        for here, other in (found, found[::-1]):
            best = _greatest(here.d, able & np.isfinite(other.d), most)
            chosen.append(best)
            scored.append((np.sign(here.d) * other.d * (1 - 3 / (4 * other.df - 1)))[best])
    others = pd.DataFrame(scored).reindex(columns=range(len(first)))  # (half, rank)
    table = pd.DataFrame({"feature": first, "group": np.where(whole[first] > 0, *groups), "d": np.abs(whole[first])})
    table = table.assign(other=others.mean(), low=others.quantile(0.025), high=others.quantile(0.975))
    again = [np.mean([feature in best for best in chosen]) for feature in first]
    return table.assign(again=again, n_one=n[0], n_other=n[1])


def _greatest(d: np.ndarray, able: np.ndarray, most: int) -> np.ndarray:
    """The features of greatest |d| among those that can be asked about, (at most `most`,)."""
    size = np.where(able & np.isfinite(d), np.abs(d), -1.0)
    return np.argsort(-size, kind="stable")[: min(most, int((size >= 0).sum()))]


def _halves(told: np.ndarray, by: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(speaker,) 0 or 1 at random, as many of each in every group and stratum, or one more; -1 for those without."""
    half = np.full(len(told), -1)
    for name in np.unique(told[told != ""]):
        order = rng.permutation(np.flatnonzero(told == name))
        order = order[np.argsort(by[order], kind="stable")]
        half[order] = (np.arange(len(order)) + rng.integers(2)) % 2
    return half


def _of(cast: effects.Voices, here: np.ndarray) -> effects.Voices:
    """The same of some speakers, (speaker,) bool."""
    corpus = None if cast.corpus is None else cast.corpus[here]
    return cast._replace(means=cast.means[here], labels=cast.labels[here], clips=cast.clips[here], corpus=corpus)


def counted(found: "Found | Many", label: str, measure: str) -> dict:
    """A row of how many features were found, and how many chance gives.

    `threshold` is of |d|, or of η² where there are more groups than two.
    """
    chance = found.chance
    n = found.table[["n_one", "n_other"]].max().tolist() if "n_one" in found.table else [chance.n]
    return {
        "label": label, "measure": measure.replace("_", " "), "n": " + ".join(map(str, n)), "tested": len(found.table),
        "found": int(chance.found.sum()), "beyond": int(chance.beyond.sum()), "threshold": chance.threshold,
        "p ≤ 0.05": chance.nominal, "by chance": by_chance(chance),
    }  # fmt: skip


def by_chance(chance) -> str:
    """How many features have p of at most 0.05 where labels are dealt: the mean, and what one deal in twenty has."""
    return f"{chance.by_chance.mean():.0f} (95 %: {np.quantile(chance.by_chance, 0.95):.0f})"


class Many(NamedTuple):
    """More than two groups in every feature that can be asked about."""

    table: pd.DataFrame
    """A row a feature, the greatest η² first: feature, eta_squared, low, high, omega_squared, f, n, p, q, p_family."""
    chance: covariates.Dealt
    few: tuple[str, ...]
    """Groups left out, since they have fewer than `intervals.LEAST` speakers."""


def many(cast: effects.Voices, label: str, strata: str = "", seed: int = 0, deals: int = 0) -> Many:
    """Any number of groups compared in every living feature, and what dealt labels give.

    With `strata`, or where there are several corpora, η² and ω² are partial, of what these leave, and labels are
    permuted within them. ω² = df₁ (F − 1) / (df₁ (F − 1) + n) (Hays 1963). Intervals are exact for normal features.
    Raises ValueError where fewer than two groups have `intervals.LEAST` speakers, or strata tell them apart.
    """
    told = cast.labels[label].to_numpy()
    size = pd.Series(told[told != ""]).value_counts()
    groups = tuple(sorted(size.index[size >= intervals.LEAST]))
    if len(groups) < 2:
        raise ValueError(f"{label}: {len(groups)} groups have {intervals.LEAST} speakers or more; two are needed")
    tested = effects.live(cast.means) & np.isfinite(cast.means).all(axis=0)
    by = strata_of(cast, strata)
    chance = covariates.dealt(cast.means, told, strata=by, groups=groups, tested=tested, seed=seed,
                              deals=deals or enough_deals(tested.sum()))  # fmt: skip
    here = np.flatnonzero(chance.tested)
    beyond = chance.df[0] * (chance.f[here] - 1)
    _, low, high = intervals.of_eta_squared(chance.f[here], *chance.df)
    table = pd.DataFrame({"feature": here, "eta_squared": chance.eta_squared[here], "low": low, "high": high})
    table = table.assign(omega_squared=beyond / (beyond + chance.n), f=chance.f[here], n=chance.n, p=chance.p[here])
    table = table.assign(q=chance.q[here], p_family=chance.p_family[here])
    table = table.sort_values("eta_squared", ascending=False, kind="stable", ignore_index=True)
    return Many(table, chance, tuple(sorted(set(size.index) - set(groups))))


def pairs(cast: effects.Voices, label: str, feature: int, seed: int = 0, deals: int = 10_000) -> pd.DataFrame:
    """Every two groups of `intervals.LEAST` speakers or more: a row a pair, that with most found first.

    Columns: one, other, n_one, n_other; tested features; `found` at a false discovery rate of 5 % over all pairs and
    features together (Benjamini & Hochberg 1995), and `beyond` chance with a family-wise error of 5 % over all pairs
    (Holm 1979, of the pairs' max-T p); the `greatest` |d|, the `threshold` of the pair alone, what could be seen in
    four of five such corpora (`visible`); and `d`, low and high of one `feature`. Where no corpus has both groups,
    `why` says so and the numbers are missing.
    """
    told, by = cast.labels[label].to_numpy(dtype=str), strata_of(cast)
    size = pd.Series(told[told != ""]).value_counts()
    live, rows, chances = effects.live(cast.means), [], []
    for groups in itertools.combinations(sorted(size.index[size >= intervals.LEAST]), 2):
        mine = compared(cast, told, groups)
        n1, n2 = (int((mine == name).sum()) for name in groups)
        try:
            intervals.enough(groups, [n1, n2])
            tested = live & effects.live(cast.means[mine != ""])
            chance = permutation.relabelled(cast.means, mine, groups, by, tested=tested, seed=seed, deals=deals)
            d, low, high = of_feature(cast.means[:, feature], mine, groups, by, seed)
        except ValueError as refused:
            rows.append((*groups, n1, n2, 0, *[np.nan] * 7, str(refused)))
            continue
        chances.append((len(rows), chance))
        visible = power.detectable(n1, n2, power.level_of(chance.threshold, n1, n2))
        rows.append((*groups, n1, n2, int(chance.tested.sum()), float(np.nanmax(np.abs(chance.d))), chance.threshold,
                     visible, d, low, high, np.nan, ""))  # fmt: skip
    table = pd.DataFrame(rows, columns=["one", "other", "n_one", "n_other", "tested", "greatest", "threshold",
                                        "visible", "d", "low", "high", "found", "why"])  # fmt: skip
    table.insert(5, "found", table.pop("found"))
    table.insert(6, "beyond", np.nan)
    for (row, _), counts in zip(chances, _over_all([chance for _, chance in chances]), strict=True):
        table.loc[row, ["found", "beyond"]] = counts
    table = table.astype({"found": "Int64", "beyond": "Int64"})
    return table.sort_values(["beyond", "found", "greatest"], ascending=False, kind="stable", ignore_index=True)


def _over_all(chances: list, level: float = 0.05) -> list[tuple[int, int]]:
    """Of each pair of groups: features found by FDR over all pairs together, and beyond chance by Holm's method."""
    if not chances:
        return []
    p = [chance.p[chance.tested] for chance in chances]
    q = np.split(stats.false_discovery_control(np.concatenate(p)), np.cumsum([len(each) for each in p])[:-1])
    least = np.array([np.nanmin(chance.p_family) for chance in chances])
    order = np.argsort(least, kind="stable")
    allowed = np.zeros(len(chances))
    for rank, one in enumerate(order):
        if least[one] > level / (len(chances) - rank):
            break
        allowed[one] = level / (len(chances) - rank)
    return [(int((a <= level).sum()), int((np.nan_to_num(chance.p_family, nan=1.0) <= most).sum()))
            for a, chance, most in zip(q, chances, allowed, strict=True)]  # fmt: skip


def of_feature(x: np.ndarray, told, groups: tuple[str, str], by=None, seed: int = 0) -> tuple[float, float, float]:
    """d of one feature (speaker,) with its interval, within strata where there are any: value, low, high."""
    if by is None:
        return tuple(float(each[0]) for each in intervals.of_d(x[:, None], told, groups, seed=seed))
    inside = stratified.within(x[:, None], told, by, groups)
    low, high = intervals.noncentral(inside.d, np.square(inside.t / inside.d), inside.df)
    return float(inside.d[0]), float(low[0]), float(high[0])


def matrix(pairs: pd.DataFrame) -> tuple[tuple[str, ...], np.ndarray]:
    """The d of `pairs` as a square: names of groups, and (group, group), row less column, 0 on the diagonal."""
    names = sorted({*pairs.one, *pairs.other})
    d = np.zeros((len(names), len(names)))
    for row in pairs.itertuples():
        i, j = names.index(row.one), names.index(row.other)
        d[i, j], d[j, i] = row.d, -row.d  # NaN where no corpus has both
    return tuple(names), d


def crossings(cast: effects.Voices, label: str, by: str, feature: int, seed: int = 0) -> pd.DataFrame:
    """Two groups of a label in one feature, in each group of another: a row a group of `by`.

    Columns: by, n of either group, d, low and high; these are missing, with the reason in `why`, where a group has
    fewer than `intervals.LEAST` speakers. With several corpora d is within them.
    """
    groups, told, other = groups_of(cast, label), cast.labels[label].to_numpy(), cast.labels[by].to_numpy()
    x, strata, rows = cast.means[:, feature], strata_of(cast), []
    for name in sorted(set(other) - {""}):
        mine = compared(cast, np.where(other == name, told, ""), groups)
        n, d, why = [int((mine == one).sum()) for one in groups], (np.nan, np.nan, np.nan), ""
        if min(n) > 1 and strata is None:
            d = (float(effects.between(x[:, None], mine, groups).d[0]), np.nan, np.nan)
        elif min(n) > 1:
            d = (float(stratified.within(x[:, None], mine, strata, groups).d[0]), np.nan, np.nan)
        try:
            intervals.enough(groups, n)
            d = of_feature(x, mine, groups, strata, seed)
        except ValueError as refused:
            why = str(refused)
        rows.append((name, *n, *d, why))
    return pd.DataFrame(rows, columns=[by, *groups, "d", "low", "high", "why"])


# ------------------------------------------------------------------------------------------------------- power


class Seen(NamedTuple):
    """What could be seen with so many speakers, by name of the design."""

    curves: dict[str, pd.DataFrame]
    """As `power.curve`."""
    least: dict[str, float]
    """The d of speakers' means that is seen in four of five such corpora."""
    level: float
    """That of a t-test whose |d| has to exceed the threshold of `found`."""


def seen(found: Found, most: float = 3.0) -> Seen:
    """The power of this corpus, of one feature and after correction for all; of six a group, and of four times it."""
    n1, n2 = found.table[["n_one", "n_other"]].max().tolist()
    strict, many = power.level_of(found.chance.threshold, n1, n2), f"{len(found.table)} features"
    designs = {f"here, {n1} + {n2}, one feature": (n1, n2, 0.05), f"here, {n1} + {n2}, {many}": (n1, n2, strict)}
    designs |= {f"{n} + {n}, {many}": (n, n, strict) for n in (6, 4 * max(n1, n2))}
    curves = {name: power.curve(a, b, level=level, most=most) for name, (a, b, level) in designs.items()}
    return Seen(curves, {name: power.detectable(a, b, level) for name, (a, b, level) in designs.items()}, strict)


def sample_sizes(seen: Seen, icc: float) -> pd.DataFrame:
    """Speakers a group for small, middling and large differences, of one clip and of ten, at this ICC (0 where it is
    negative or not known) and at 0.3."""
    iccs = [round(max(np.nan_to_num(icc), 0.0), 3), 0.3]
    return power.by_design(power.needed([0.2, 0.5, 0.8], [1, 10], iccs, level=seen.level))


# ---------------------------------------------------------------------------------------- what else explains it


def held(cast: effects.Voices, labels: list[str], told: pd.DataFrame, seed: int = 0, deals: int = 0) -> pd.DataFrame:
    """What is left of the differences between groups with each covariate held fixed, `told` being those of
    `voices.covariates`: a row a label, covariate and way, and first one with nothing else held fixed. Where there are
    several corpora, these are held fixed throughout.

    Columns: label; held; way, "regression" or "matching", of two groups only; `own`, the covariate's own d between
    groups, the greatest of any two; n speakers who count; `left`, the share of the grouping that is not told by it;
    tested; found; beyond; `p ≤ 0.05` and `by chance` features; `why` there is no answer, or "".
    """
    rows, by = [], strata_of(cast)
    for label in labels:
        known = cast.labels[label].to_numpy()
        size = pd.Series(known[known != ""]).value_counts()
        groups = groups_of(cast, label) if len(size) == 2 else tuple(sorted(size.index[size >= intervals.LEAST]))
        tested = effects.live(cast.means) & np.isfinite(cast.means).all(axis=0)
        ask = {"tested": tested, "deals": deals or enough_deals(tested.sum()), "seed": seed, "strata": by}
        answer, why = _answered("", cast, known, None, groups, ask)
        rows.append((label, "nothing", "", np.nan, *answer, why))
        for name in () if why else told:
            own = _own(told[name].to_numpy(), known, by)
            for way in ("regression", "matching")[: 2 if len(groups) == 2 else 1]:
                answer, why = _answered(way, cast, known, told[[name]], groups, ask)
                rows.append((label, name, way, own, *answer, why))
    counts = ["tested", "found", "beyond", "p ≤ 0.05"]
    names = ["label", "held", "way", "own", "n", "left", *counts, "by chance", "why"]
    return pd.DataFrame(rows, columns=names).astype(dict.fromkeys(counts, "Int64")).round({"own": 2, "left": 3})


def _own(number: np.ndarray, known: np.ndarray, by) -> float:
    """The greatest |d| of a covariate between any two groups of `intervals.LEAST` speakers, within strata if any."""
    if by is None:
        return float(np.nanmax(np.abs(effects.pairwise(number[:, None], known, intervals.LEAST)[1])))
    size, gaps = pd.Series(known[known != ""]).value_counts(), [np.nan]
    for groups in itertools.combinations(size.index[size >= intervals.LEAST], 2):
        with contextlib.suppress(ValueError):
            gaps.append(abs(float(stratified.within(number[:, None], known, by, groups).d[0])))
    return float(pd.Series(gaps).max())


def _answered(way: str, cast: effects.Voices, known: np.ndarray, covariate, groups, ask: dict) -> tuple:
    try:
        return (_matched if way == "matching" else _adjusted)(cast, known, covariate, groups, ask), ""
    except ValueError as refused:
        return (0, np.nan, 0, None, None, None, "–"), str(refused)


def _adjusted(cast: effects.Voices, known: np.ndarray, covariate, groups, ask: dict) -> tuple:
    chance = covariates.dealt(cast.means, known, covariate, groups=groups, **ask)
    return _told(chance, 1.0 if covariate is None else chance.left, chance.n)


def _matched(cast: effects.Voices, known: np.ndarray, covariate: pd.DataFrame, groups, ask: dict) -> tuple:
    """Members of a pair change places, and only these; with several corpora they are of one."""
    pairs = matching.matched(known, covariate, groups, strata=ask["strata"]).pairs
    number = np.full(len(known), "", dtype=object)
    number[pairs] = np.arange(len(pairs)).astype(str)[:, None]
    chance = permutation.relabelled(cast.means, known, groups, **ask | {"strata": number})
    return _told(chance, np.nan, pairs.size)


def _told(chance, left: float, n: int) -> tuple:
    return (n, left, int(chance.tested.sum()), int(chance.found.sum()), int(chance.beyond.sum()), chance.nominal,
            by_chance(chance))  # fmt: skip
