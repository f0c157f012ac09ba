"""Go or no-go: each thing that a plan must have, by a criterion that can fail, beside what chance gives by it.

The plan is the reference's for emotions in T5 (`as published`). Some of its criteria cannot fail: saying the mean
meets its error, and a random dictionary its selectivity; one cannot be met: a selectivity above the number of classes.
"""

import numpy as np
import pandas as pd

COLUMNS = ["must have", "as published", "asked here", "value", "by chance", "passes"]

SELECTIVE, MANY, EACH = 2.0, 50, 10
"""The published bounds: selectivity above 2 in 50 features, and 10 features of each emotion."""

MOST_L0, MOST_DEAD = 200 / 6144, 0.1
APART, STABLE = 0.3, 0.7
"""|r| between features of two emotions; the cosine from which a feature of another seed is the same."""


def table(*, likeness, probed: pd.DataFrame, rivals: pd.DataFrame, l0: float, dead: float, latents: int,
          found: pd.DataFrame, random: pd.DataFrame, causes: pd.DataFrame, apart: tuple[float, float],
          stable: tuple[float, float], steered: pd.DataFrame) -> pd.DataFrame:  # fmt: skip
    """A row a must-have: what was published, what is asked here, the value, chance by the same rule, and the verdict.

    `likeness` is `classes.likeness`; `probed` is the table of `emotions.probed`, `causes` and `steered` are those of
    `interventions`; `found` and `random` those of `classes.discoveries` with `held_out` and `word_free`, of the
    dictionary and of a random one; `apart` and `stable` are a share and what chance gives of it.
    """
    told, lot = of_features(found), of_features(random)
    fvu = rivals.set_index("rival").fvu
    read = probed.set_index(["question", "input"])
    unseen, dealt = (read.loc[("unseen phrases", name)] for name in ("embedding", "emotions dealt anew"))
    rise = steered[steered["vector"] == "feature"].groupby("class").rise.max()
    lots = steered[steered["vector"] == "random"].groupby("class").p95.max()
    ways = causes.groupby("way").p.max().reindex(["silenced", "transplanted", "alone"])
    beaten, untested = int((causes.p <= 0.05).sum()), int(causes.p.isna().sum())
    worst = f"worst p = {ways.max():.2f}" if untested < len(causes) else "none tested"
    worst += f"; {untested} without matched controls" if untested else ""
    rows = [
        ("emotions differ in the embeddings", "t-test of pairs of prompts, p < 1e-6", "p < 0.05, dealt among phrases",
         f"{likeness.difference:.4f}, p = {likeness.p:.4f}", f"at most {likeness.chance_most:.4f}", likeness.p < 0.05),
        ("a probe reads them", "96 % in five folds", "unseen phrases: its interval above chance's",
         f"{unseen.right:.0%} ({unseen.low:.0%} to {unseen.high:.0%})", f"{dealt.right:.0%}", unseen.low > dealt.high),
        ("the dictionary re-says", "MSE < 0.01", "FVU on unseen phrases below principal directions'",
         f"{fvu['dictionary']:.3f}", f"{fvu['principal directions']:.3f}; the mean 1",
         fvu["dictionary"] < fvu["principal directions"]),
        ("it is sparse", "L0 50 to 200 of 6,144, dead < 10 %", "L0 ≤ 3.3 % of the latents, dead in all prompts < 10 %",
         f"{l0:.0f} of {latents:,} ({l0 / latents:.1%}); dead {dead:.0%}", "–",
         l0 <= MOST_L0 * latents and dead < MOST_DEAD),
        ("it is selective", "≥ 50 features above 2", "≥ 50 found, above 2 in unseen phrases",
         f"{told['selective']}", f"{lot['selective']}", told["selective"] >= MANY),
        ("each emotion has features", "≥ 10 interpretable ones", "≥ 10 found of each, still above 2 in new templates",
         f"{told['least']}", f"{lot['least']}", told["least"] >= EACH),
        ("they hold without the words", "100 new prompts", "half of those found, at least one: above 2, word-free",
         f"{told['free']} of {told['found']}", f"{lot['free']} of {lot['found']}",
         told["free"] > 0 and told["free"] >= told["found"] / 2),
        ("they are causes", "changes as expected", "beyond 95 % of matched features, in every emotion and way",
         f"{beaten} of {len(causes)}; {worst}", f"{0.05 * len(causes):.1f}",
         len(causes) > 0 and beaten == len(causes)),
        ("they are apart", "|r| < 0.3", f"all pairs of two emotions below {APART}", f"{apart[0]:.0%}",
         f"{apart[1]:.0%}", apart[0] == 1.0),
        ("other seeds find them", "3 seeds", f"half have their like, cosine ≥ {STABLE}", f"{stable[0]:.0%}",
         f"{stable[1]:.0%}", stable[0] >= 0.5),
        ("they steer", "CLAP score rises", "the probe's rise beyond 95 % of random vectors', every emotion",
         f"{(rise > lots).sum()} of {len(rise)}; {rise.min():.2f} to {rise.max():.2f}",
         f"{lots.min():.2f} to {lots.max():.2f}", bool((rise > lots).all())),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS).assign(passes=lambda t: np.where(t.passes, "pass", "fail"))


def of_features(found: pd.DataFrame) -> dict[str, int]:
    """How many features are found, how many of them are selective, the fewest of an emotion that hold in new templates,
    and how many hold in word-free ones there."""
    mine = found[found.found.astype(bool)]
    held = mine[mine.held_out > SELECTIVE]
    names = sorted(set(found["class"]))
    return {
        "found": len(mine),
        "selective": int((mine.selectivity > SELECTIVE).sum()),
        "least": min((int((held["class"] == name).sum()) for name in names), default=0),
        "free": int((mine.word_free > SELECTIVE).sum()),
    }
