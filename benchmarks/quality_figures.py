"""What benchmarks/quality.py found, as tables, targets and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import Bar

Entry = Mapping[str, Any]
"""One arm of one split and seed: ``scores[score][set]`` is [FPR95, AUROC, AUPR-out]."""
FAR_SETS = ("mnist", "emoji", "photos", "textures", "glyphs")
"""Far-OOD test sets; no choice, of this version or before, has seen ``glyphs``."""
UNIFIED = "unified"
BY_CLASS = " by class"
"""What the name of a score with a scale for each class ends with; the unified score has them too,
and all others are peers."""


TRANSDUCTIVE = "GOOD's own combination, which has seen the test sets"
"""No rival: its weights are taken from the sets that it is measured on."""


def fpr95(entry: Entry, sets: Sequence[str], score: str = UNIFIED) -> float:
    """Mean FPR95 over sets."""
    return float(np.mean([entry["scores"][score][name][0] for name in sets]))


def finished(entries: Sequence[Entry], arm: str) -> list[Entry]:
    """The entries of an arm whose training kept its accuracy."""
    return [entry for entry in entries if entry["arm"] == arm and "failed" not in entry]


def peers(entries: Sequence[Entry]) -> dict[str, dict[str, float]]:
    """Every score of the original classifiers, post-hoc peers and ours: means over the splits."""
    originals = finished(entries, "original")
    names = originals[0]["scores"] if originals else ()
    return {
        name: {
            "near_fpr95": float(np.mean([fpr95(entry, ("near",), name) for entry in originals])),
            "far_fpr95": float(np.mean([fpr95(entry, FAR_SETS, name) for entry in originals])),
        }
        for name in names
    }


def trainings(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """Every arm by the unified score: means over splits and seeds, and against the control."""
    table = {}
    for arm in dict.fromkeys(entry["arm"] for entry in entries):
        done = finished(entries, arm)
        if not done:
            continue
        of = [entry["scores"][UNIFIED] for entry in done]
        table[arm] = {
            "runs": len(done),
            "failed": sum(entry["arm"] == arm for entry in entries) - len(done),
            "near_fpr95": float(np.mean([fpr95(entry, ("near",)) for entry in done])),
            "far_fpr95": float(np.mean([fpr95(entry, FAR_SETS) for entry in done])),
            "near_auroc": float(np.mean([sets["near"][1] for sets in of])),
            "far_auroc": float(np.mean([sets[name][1] for sets in of for name in FAR_SETS])),
            "accuracy": float(np.mean([entry["accuracy"] for entry in done])),
            "near_fall": fall(entries, arm, "control", ("near",)),
            "far_fall": fall(entries, arm, "control", FAR_SETS),
        }
    return table


def fall(
    entries: Sequence[Entry], arm: str, other: str, sets: Sequence[str]
) -> dict[str, Any] | None:
    """How much lower an arm's FPR95 is than another's, relative, over the runs that both have: a
    ratio of means, with the 95 % interval and p-value of the paired t-test of the differences.

    None without such runs; one run has no interval and no p-value.
    """
    from scipy import stats

    others = {(entry["split"], entry["seed"]): entry for entry in finished(entries, other)}
    if other == "original":
        of_splits = {entry["split"]: entry for entry in finished(entries, other)}
        others = {
            (entry["split"], entry["seed"]): of_splits[entry["split"]]
            for entry in entries
            if entry["split"] in of_splits
        }
    pairs = [
        (fpr95(entry, sets), fpr95(others[entry["split"], entry["seed"]], sets))
        for entry in finished(entries, arm)
        if (entry["split"], entry["seed"]) in others
    ]
    if not pairs:
        return None
    own, theirs = np.array(pairs).T
    mean = theirs.mean()
    found = {"relative": float(1 - own.mean() / mean), "pairs": len(pairs)}
    if len(pairs) > 1 and np.ptp(theirs - own) > 0:
        test = stats.ttest_1samp(theirs - own, 0)
        low, high = test.confidence_interval()
        found |= {"low": low / mean, "high": high / mean, "p_value": float(test.pvalue)}
    return found


def targets(entries: Sequence[Entry], recipe: str, rivals: Sequence[str]) -> list[Bar]:
    """The study's targets, of the final splits.

    Args:
        entries: Of the final splits.
        recipe: The arm that is recommended.
        rivals: The arms of other ways of making outliers.
    """
    done = finished(entries, recipe)
    if not done:
        return []
    rows = {
        name: row
        for name, row in peers(entries).items()
        if name not in (UNIFIED, TRANSDUCTIVE) and not name.endswith(BY_CLASS)
    }
    ours = trainings(entries)[recipe]
    bars = []
    for figure, title, bound in (("near", "near-OOD", 0.25), ("far", "far-OOD", 0.35)):
        key = f"{figure}_fpr95"
        best = min(rows, key=lambda name, key=key: rows[name][key])
        relative = 1 - ours[key] / rows[best][key]
        bars.append(
            Bar(f"{title} FPR95 below the best post-hoc peer ({best})", relative, ">=", bound)
        )
    for sets, title, bound in ((("near",), "near-OOD", 0.2), (FAR_SETS, "far-OOD", 0.25)):
        against = fall(entries, recipe, "control", sets)
        if against is not None:
            bars.append(Bar(f"{title} FPR95 below the control's", against["relative"], ">=", bound))
    for rival in rivals:
        against = fall(entries, recipe, rival, ("near",))
        if against is not None and "p_value" in against:
            name = f"near-OOD FPR95 below that of {rival} (p = {against['p_value']:.2g})"
            bars.append(Bar(name, against["relative"], ">=", 0.1))
    original = np.mean([entry["accuracy"] for entry in finished(entries, "original")])
    bars.append(Bar("loss of ID accuracy", float(original - ours["accuracy"]), "<=", 0.005))
    return bars + _against_single(done)


def _against_single(done: Sequence[Entry]) -> list[Bar]:
    """The unified score's AUROC against the best single discrepancy's, by set and in the mean."""
    singles = [name for name in done[0]["scores"] if name.endswith(BY_CLASS)]
    sets = ("near", *FAR_SETS)

    def auroc(score: str, name: str) -> float:
        return float(np.mean([entry["scores"][score][name][1] for entry in done]))

    behind = max(max(auroc(s, name) for s in singles) - auroc(UNIFIED, name) for name in sets)
    means = {s: float(np.mean([auroc(s, name) for name in sets])) for s in (*singles, UNIFIED)}
    ahead = means.pop(UNIFIED) - max(means.values())
    return [
        Bar("unified AUROC behind the best single discrepancy, worst set", behind, "<=", 0.003),
        Bar("unified AUROC ahead of the best single discrepancy, mean", ahead, ">=", 0),
    ]


def draw(entries: Sequence[Entry], path: Path) -> None:
    """The fall of near- and far-OOD FPR95 against the original classifier, by arm, with its 95 %
    interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    arms = [arm for arm in trainings(entries) if arm != "original"]
    falls = {
        title: {arm: fall(entries, arm, "original", sets) for arm in arms}
        for title, sets in (("near-OOD", ("near",)), ("far-OOD, mean", FAR_SETS))
    }
    arms = [arm for arm in arms if all(of[arm] is not None for of in falls.values())]
    arms.sort(key=lambda arm: falls["near-OOD"][arm]["relative"])
    figure, axes = plt.subplots(1, 2, figsize=(10, 1 + 0.3 * len(arms)), sharey=True)
    for axis, (title, of) in zip(axes, falls.items(), strict=True):
        middles = np.array([100 * of[arm]["relative"] for arm in arms])
        edges = np.array(
            [[100 * of[arm].get(side, np.nan) for arm in arms] for side in ("low", "high")]
        )
        colours = ["#c2410c" if arm.startswith("GOOD") else "#64748b" for arm in arms]
        axis.barh(arms, middles, color=colours, height=0.7)
        errors = [middles - edges[0], edges[1] - middles]
        axis.errorbar(middles, arms, xerr=errors, fmt="none", ecolor="#1e293b", elinewidth=1)
        axis.axvline(0, color="#1e293b", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.supxlabel("FPR95 below the original classifier's, % of it", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
