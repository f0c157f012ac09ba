"""What came of features that were tested on punctuation: effects beside controls, dose-response curves, examples.

All is read from a step of `punctuation.tested`; the unit is the held-out speaker.
"""

import numpy as np
import pandas as pd

from whisper_sae import controls, intervals, punctuation
from whisper_sae.store import Step

DRAWS = 2000
"""Draws of a bootstrap over speakers."""


def interval(each: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean over speakers, (speaker,), from a bootstrap over them; NaN for few."""
    each = each[np.isfinite(each)]
    drawn = np.random.default_rng(seed).integers(0, max(1, len(each)), (DRAWS, len(each)))
    low, high = intervals.of_draws(each[drawn].mean(axis=1), len(each)) if len(each) else (np.nan, np.nan)
    return float(low), float(high)


def by_speaker(each: np.ndarray, speaker: np.ndarray) -> np.ndarray:
    """The mean of each speaker's clips, (…, clip) -> (…, speaker); NaN where none has a value."""
    names = pd.factorize(speaker)[0]
    parts = [pd.DataFrame(np.atleast_2d(each)[:, names == name].T).mean().to_numpy() for name in range(names.max() + 1)]
    return np.stack(parts, axis=-1).reshape(*np.shape(each)[:-1], -1)


def judged(step: Step) -> pd.DataFrame:
    """A row a candidate, the surest first: `effect`, what the edit adds to the log-odds of the target in the direction
    that attribution expects (nats, mean over held-out speakers), with `low` and `high`; the median, least and greatest
    of its matched controls, each in the direction that attribution expects of it; the random direction at the same
    moments; ratios of rate and rate × size to the median control; `position`, see `Attributed`; p and q.

    p is the greater of that of the signs of speakers (`controls.flipped`) and that of controls (`controls.beyond`,
    pooled over candidates); q the false discovery rate. Candidates with fewer than
    `punctuation.CONTROLS` controls have none.
    """
    parts, against, place = [], [], []
    for site, known in step.table("edits.csv", dtype={"site": str, "target": str}).groupby("site", sort=False):
        each = by_speaker(step.array("each.npy")[known.index], _speakers(step))
        signed = known.sign.to_numpy()[:, None] * each
        for (target, of), rows in known.reset_index(drop=True).groupby(["target", "of"], sort=False):
            own, random = (rows.index[rows.kind == kind][0] for kind in ("feature", "random"))
            near = rows.index[rows.kind == "control"]
            others = np.nanmean(signed[near], axis=1) if len(near) else np.zeros(0)
            mine, (low, high) = signed[own], interval(signed[own])
            ratios = {"rate": np.nan, "rate × size": np.nan}
            if len(near):
                picked = rows.loc[[own, *near]]
                ratios = controls.balance(picked.rate.to_numpy(), picked["size"].to_numpy(), 0, range(1, len(picked)))
            if len(near) == punctuation.CONTROLS:
                against.append(others)
                place.append(len(parts))
            parts.append({
                "target": target, "site": site, "feature": of, "scale": rows["scale"][own], "sign": rows.sign[own],
                "speakers": int(np.isfinite(mine).sum()), "effect": np.nanmean(mine), "low": low, "high": high,
                "controls": np.median(others) if len(near) else np.nan, "least": others.min(initial=np.inf),
                "greatest": others.max(initial=-np.inf), "matched": len(near),
                "random": np.nanmean(known.sign.to_numpy()[own] * each[random]), "rate ratio": ratios["rate"],
                "mass ratio": ratios["rate × size"], "rate": rows.rate[own], "position": rows.position[own],
                "p_signs": controls.flipped(mine),
            })  # fmt: skip
    table = pd.DataFrame(parts)
    if len(table):
        beyond = np.full(len(table), np.nan)
        if against:
            beyond[place] = controls.beyond(table.effect.to_numpy()[place], np.stack(against)).p
        table["p"] = np.where(np.isfinite(beyond), np.maximum(table.p_signs, beyond), np.nan)
        table["q"] = controls.discoveries(table.p)
        table = table.sort_values(["q", "effect"], ascending=[True, False], na_position="last", ignore_index=True)
    return table


COLUMNS = {"target": "token", "site": "site", "feature": "feature", "scale": "×", "effect": "effect", "low": "from",
           "high": "to", "controls": "controls", "least": "least", "greatest": "greatest", "random": "random",
           "rate ratio": "rate ratio", "mass ratio": "rate × size ratio", "position": "position η²",
           "q": "q"}  # fmt: skip
"""Columns of the table of candidates that a page shows."""


def passed(table: pd.DataFrame, most: float = 0.05) -> pd.DataFrame:
    """The candidates of `judged` whose false discovery rate is at most `most`."""
    return table[table.q <= most]


def of_nothing(step: Step) -> float:
    """The largest change of any outcome by the edit that multiplies a feature by 1, nats."""
    nothing = (step.table("edits.csv").kind == "nothing").to_numpy()
    return float(np.nanmax(np.abs(step.array("each.npy")[nothing]), initial=0.0))


def sentence(table: pd.DataFrame) -> str:
    """What the table of candidates shows, in words with its numbers."""
    good, lone = passed(table), table[table.matched < punctuation.CONTROLS]
    names = ", ".join(f"{row.feature} at {row.site} ({row.target})" for row in good.itertuples()) or "none"
    apart = np.log(table[["rate ratio", "mass ratio"]].astype(float)).abs().median()
    return (
        f"Beyond their matched controls, at a false discovery rate of 5 %: {names}. {len(lone)} of {len(table)} "
        f"candidates have fewer than {punctuation.CONTROLS} matched controls and are not tested. Median |log ratio| to "
        f"the controls: {apart['rate ratio']:.2f} in rate, {apart['mass ratio']:.2f} in rate × size."
    )


def changed(step: Step, most: int = 3) -> pd.DataFrame:
    """Transcripts before and after, of the clips that gain or lose most tokens of the kind: `target`, `scale`,
    `before`, `after`; a row each, `most` for a target, at the scale that moves its rate furthest."""
    told, rows = wrote(step), []
    for target, part in told[told.kind == "feature"].groupby("target", sort=False):
        wide = part.pivot(index="clip", columns="scale", values="count")
        scale = (wide.sum() - wide[1.0].sum()).abs().idxmax()
        text = part.pivot(index="clip", columns="scale", values="wrote")
        for clip in (wide[scale] - wide[1.0]).abs().sort_values(ascending=False, kind="stable").index[:most]:
            rows.append((target, scale, text.loc[clip, 1.0], text.loc[clip, scale]))
    return pd.DataFrame(rows, columns=["target", "scale", "before", "after"])


def tokens_of_features(step: Step, most: int = 20) -> pd.DataFrame:
    """The decoder's features that name their token best: the larger side of each feature, `given` or `next`, of
    features that fire on at least 5 tokens of held-out speakers, those with the most firings on the token first."""
    told = step.table("fires_on.csv", dtype={"token": str, "side": str}, keep_default_na=False)
    told = told.assign(lift=pd.to_numeric(told.lift, errors="coerce"), gain=0.0)
    told = told[told["count"] >= 5]
    told["gain"] = told["count"] * np.log(told.lift)
    best = told.sort_values("gain", ascending=False, kind="stable").drop_duplicates("feature").head(most)
    return best.assign(token=[repr(token) for token in best.token]).drop(columns="gain").reset_index(drop=True)


def dosed(step: Step) -> pd.DataFrame:
    """A row a target, kind and scale: `rate`, tokens of the kind per 100 words (mean over speakers) with `low` and
    `high`, and `kept`, %; for `control` the median over controls, with `least` and `greatest` in `low` and `high`."""
    told, speaker, rows = wrote(step), _speakers(step), []
    told["rate"] = 100 * told["count"] / np.maximum(told.words, 1)
    for (target, kind, scale), part in told.groupby(["target", "kind", "scale"], sort=False):
        each = [by_speaker(one.sort_values("clip").rate.to_numpy(float), speaker) for _, one in part.groupby("feature")]
        means = np.array([one.mean() for one in each])
        low, high = (means.min(), means.max()) if kind == "control" else interval(each[0])
        site, feature = part.site.iloc[0], -1 if kind == "control" else part.feature.iloc[0]
        rows.append(
            (target, site, feature, kind, scale, np.median(means), low, high, 100 * part.kept.mean(), len(each))
        )
    columns = ["target", "site", "feature", "kind", "scale", "rate", "low", "high", "kept", "features"]
    return pd.DataFrame(rows, columns=columns).sort_values(["target", "kind", "scale"], ignore_index=True)


def wrote(step: Step) -> pd.DataFrame:
    """The transcripts of `doses`."""
    return step.table("wrote.csv", dtype={"wrote": str, "target": str}, keep_default_na=False)


def _speakers(step: Step) -> np.ndarray:
    return step.table("clips.csv", dtype={"speaker": str}).speaker.to_numpy()
