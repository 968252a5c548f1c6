"""The sections that only a comparison on an evaluation log has, in words for the report page."""

from collections.abc import Mapping
from typing import Any

from pointsman.frontier.reading import Reading, figure, share

# name -> heading, what it says, whether it is a share
FIGURES: Mapping[str, tuple[str, str, bool]] = {
    "aiq": ("AIQ", "mean quality along the range of cost, mixing allowed", False),
    "gain": ("Over chance", "AIQ less that of mixing the models at random", False),
    "apgr": ("APGR", "average of the gap between cheapest model and reference recovered", False),
    "deferral_area": ("Deferral area", "mean quality over the share of the reference", False),
    "cpt50": ("CPT 50", "least share of the reference that recovers half of the gap", True),
    "cpt80": ("CPT 80", "the same for four fifths", True),
    "perf_gain": ("PerfGain", "best quality over the best single model's, less one", True),
    "cost_save": ("CostSave", "cost saved at the best single model's quality", True),
    "oracle_gap": ("Oracle gap", "share of the oracle's quality that is missed", True),
}
UP = "Sent to the reference, with most to gain from it"
DOWN = "Kept from the reference, with least to lose"


def pool_sections(reading: Reading) -> dict[str, Any] | None:
    """Verdict, strategies, groups and examples in words; None where no log was compared."""
    pool = reading.results.get("pool")
    if not pool:
        return None
    return {
        "verdict": pool["verdict"]["words"],
        "recovered": _recovered(pool.get("pgr")),
        "heads": [(name, about) for name, about, _ in FIGURES.values()],
        "strategies": [_strategy(row) for row in pool["strategies"]],
        "models": [model["name"] for model in pool["models"]],
        "groups": [_groups(name, group) for name, group in (pool.get("groups") or {}).items()],
        "examples": _examples(pool.get("examples") or {}),
    }


def _recovered(pgr: float | None) -> str:
    """How much of the gap the pick recovers (PGR), in words; nothing where there is no gap."""
    if pgr is None:
        return ""
    return (
        f"The pick recovers {share(pgr)} of the gap between the cheapest model and the reference "
        "(PGR, on the test split)."
    )


def _strategy(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": row["title"],
        "when": row["when"],
        "seconds": figure(float(row["seconds"])),
        "cells": [_cell(row["figures"].get(name), part) for name, (_, _, part) in FIGURES.items()],
    }


def _cell(found: Mapping[str, Any] | None, part: bool) -> dict[str, str]:
    """A figure and its interval in words."""

    def words(value: float) -> str:
        return share(value, fixed=True) if part else f"{value:.3f}".replace("-", "−")

    if not found or found.get("value") is None:
        return {"value": "–", "between": ""}
    low, high = found.get("low"), found.get("high")
    ends = [] if low is None or high is None else [words(low), words(high)]
    between = " … ".join(end.removesuffix("\xa0%") for end in ends)
    return {"value": words(float(found["value"])), "between": between}


def _groups(name: str, group: Mapping[str, Any]) -> dict[str, Any]:
    rows = group["rows"]
    note = "Largest drop first; the interval of 95% is wide where there are few queries."
    if len(rows) < group["values"]:
        note += f" {len(rows)} of {group['values']} are shown."
    return {
        "name": name,
        "note": note,
        "rows": [
            {
                "value": row["value"],
                "queries": f"{row['queries']:,}",
                "reference": share(row["reference_quality"], fixed=True),
                "pick": share(row["quality"], fixed=True),
                "drop": _points(row["drop"]),
                "between": f"{_points(row['drop_low'])} to {_points(row['drop_high'])}",
                "saved": share(row["saved"], fixed=True),
                "up": share(row["to_reference"], fixed=True),
            }
            for row in rows
        ],
    }


def _points(drop: float) -> str:
    return f"{100 * drop:.1f}".replace("-", "−")


def _examples(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Queries sent up and down, each model with what was expected of it and what it scored."""
    return [
        {
            "title": title,
            "rows": [
                {
                    "query": row["query"],
                    "model": row["model"],
                    "cells": [
                        f"{expected:.2f} → {figure(scored)}"
                        for expected, scored in zip(row["expected"], row["quality"], strict=True)
                    ],
                }
                for row in given[way]
            ],
        }
        for way, title in (("up", UP), ("down", DOWN))
        if given.get(way)
    ]
