"""Example results mappings, schema version 1, for the chart, the report and the terminal table.

`features` is a certified run on digits, `text` a language model in bits per byte, `uncertified` a
run whose calibration split was too small, `crowded` five ways of twelve points whose qualities
crowd at the top while a few fail badly. The figures are made up, and drawn from fixed formulas.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Json = dict[str, Any]

MLPS = (("mlp 16", 0.942, 0.0024), ("mlp 64", 0.962, 0.0176), ("mlp 256", 0.971, 0.0381))
REFERENCE = ("mlp 256-256", 0.9755, 0.176)
HOSTILE = (
    '</script><script>document.title="owned"</script><img src=x onerror=document.title="owned">'
)


def features() -> Json:
    """Digits, certified: a cascade keeps accuracy within one point at about a seventh."""
    ladder = [{"name": name, "knob": name, "quality": q, "cost": c} for name, q, c in MLPS]
    ladder.append(dict(zip(("name", "knob", "quality", "cost"), _named(*REFERENCE), strict=True)))
    cascade = [
        {"knob": f"mlp 16 > mlp 256-256 @ {t:.2f}", "quality": q, "cost": c}
        for t, q, c in (
            (0.99, 0.9777, 0.0712), (0.97, 0.9777, 0.0524), (0.95, 0.9755, 0.0391),
            (0.93, 0.9733, 0.0253), (0.88, 0.9710, 0.0187), (0.80, 0.9621, 0.0119),
            (0.70, 0.9532, 0.0071), (0.55, 0.9443, 0.0035),
        )
    ]  # fmt: skip
    exits = _way("exit @ {:.2f}", (0.98, 0.95, 0.9, 0.8, 0.7, 0.5), _bend(0.9688, 0.9354),
                 np.geomspace(0.118, 0.0098, 6))  # fmt: skip
    nested = _way("width {:.0f}", (256, 192, 128, 96, 64, 32, 16, 8), _bend(0.9733, 0.891),
                  np.geomspace(0.181, 0.0041, 8))  # fmt: skip
    moe = [
        {"knob": "8 experts, top 1", "quality": 0.9599, "cost": 0.0217},
        {"knob": "8 experts, top 2", "quality": 0.9644, "cost": 0.0391},
        {"knob": "16 experts, top 1", "quality": 0.9577, "cost": 0.0231},
        {"knob": "16 experts, top 2", "quality": 0.9666, "cost": 0.0402},
    ]
    ways = [
        _titled("dense", "Ladder members alone", ladder),
        _titled("cascade", "Cascade of ladder members", cascade),
        _titled("exits", "Early exits", exits),
        _titled("nested", "Nested widths", nested),
        _titled("moe", "Mixture of experts", moe),
    ]
    return {
        "schema": {"name": "pointsman-results", "version": 1},
        "made_by": {
            "pointsman": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.7", "threads": 2,
            "date": "2026-11-21T10:00:00+00:00", "seconds": 131.2, "seed": 0,
            "command": "pointsman compare digits",
        },
        "data": {
            "name": "digits", "kind": "features",
            "inputs": {"train": 718, "validation": 180, "calibration": 450, "test": 449},
            "classes": [str(digit) for digit in range(10)],
            "note": "8 x 8 images of handwritten digits, bundled with scikit-learn.",
        },
        "metric": {"name": "accuracy", "worst": 0.0, "best": 1.0, "higher_is_better": True},
        "reference": {"name": REFERENCE[0], "quality": REFERENCE[1], "cost": REFERENCE[2],
                      "unit": "MFLOPs"},
        "ladder": ladder,
        "ways": ways,
        "random": {"points": ladder},
        "oracle": {"quality": 0.9911, "cost": 0.0061},
        "pick": {
            "way": "cascade", "knob": cascade[3]["knob"], "quality": cascade[3]["quality"],
            "cost": cascade[3]["cost"], "saved": 1 - cascade[3]["cost"] / REFERENCE[2],
            "max_drop": 0.01, "confidence": 0.95, "certified": True,
            "shares": {"mlp 16": 0.87, "mlp 256-256": 0.13},
            "reference_ms": 0.0121, "measured_ms": 0.0043,
        },
        "certificate": {
            "certified": True, "max_drop": 0.01, "confidence": 0.95, "method": "exact",
            "knob": cascade[3]["knob"], "inputs": 450, "tested": 5, "accepted": 4,
            "p_value": 0.0183, "promised_drop": 0.01, "observed_drop": 0.0022,
            "more_inputs": None,
            "by_method": {"exact": 0.0183, "betting": 0.0391, "predictable_betting": 0.0442,
                          "empirical_bernstein": 0.21, "hoeffding_bentkus": 0.118,
                          "hoeffding": 0.87},
            "words": "With 95 % confidence the mean drop against mlp 256-256 is at most 0.01 on "
                     "inputs like the 450 of the calibration split. The drop seen there was "
                     "0.0022. Settings were tested from the safest on; 4 were accepted.",
        },
        "trained": [
            _trained("mlp 16", "ladder", 1210, 60, 0.00031, 1.2),
            _trained("mlp 64", "ladder", 4810, 60, 0.0012, 1.5),
            _trained("mlp 256", "ladder", 19210, 60, 0.0049, 2.2),
            _trained("mlp 256-256", "ladder", 85002, 60, 0.0227, 4.0),
            _trained("early exits, 3 exits", "exits", 91806, 80, 0.0311, 6.9),
            _trained("nested mlp", "nested", 85002, 120, 0.0412, 11.3),
            _trained("8 experts", "moe", 88330, 80, 0.0104, 13.8),
            _trained("16 experts", "moe", 172410, 80, 0.0118, 19.1),
        ],
        "truth": None,
    }  # fmt: skip


def uncertified() -> Json:
    """Digits with too few calibration inputs: the safest setting, and what can be promised."""
    results = features()
    results["data"]["inputs"]["calibration"] = 90
    safest = results["ways"][1]["points"][0]
    results["pick"] |= {
        "knob": safest["knob"], "quality": safest["quality"], "cost": safest["cost"],
        "saved": 1 - safest["cost"] / REFERENCE[2], "certified": False,
    }  # fmt: skip
    results["certificate"] |= {
        "certified": False, "knob": safest["knob"], "inputs": 90, "tested": 1, "accepted": 0,
        "p_value": 0.405, "promised_drop": 0.0327, "observed_drop": 0.0, "more_inputs": 209,
        "by_method": {"exact": 0.405, "betting": 0.61, "hoeffding": 0.98},
        "words": "Not certified: 90 calibration inputs are too few to show with 95 % confidence "
                 "that the mean drop is at most 0.01. What can be promised is 0.0327. About 209 "
                 "more inputs would do if the drops stay as they are.",
    }  # fmt: skip
    return results


def text() -> Json:
    """A character-level language model, bits per byte, cost per token, five ways."""
    results = features()
    ladder = [
        {"name": name, "knob": name, "quality": 1 - bits / 8, "cost": cost}
        for name, bits, cost in (
            ("1 layer x 64", 2.61, 0.31), ("2 layers x 128", 2.24, 1.62),
            ("4 layers x 192", 2.02, 4.9), ("6 layers x 256", 1.93, 11.4),
        )
    ]  # fmt: skip
    reference = ladder[-1]
    cascade = _way("1 layer x 64 > 6 layers x 256 @ {:.2f}", (0.95, 0.9, 0.8, 0.7, 0.6, 0.5),
                   1 - np.array([1.931, 1.938, 1.967, 2.03, 2.13, 2.31]) / 8,
                   (8.7, 7.2, 5.6, 4.1, 2.7, 1.4))  # fmt: skip
    exits = _way("exit @ {:.2f}", (0.98, 0.95, 0.9, 0.8, 0.7, 0.5),
                 1 - np.array([1.944, 1.951, 1.969, 2.01, 2.11, 2.36]) / 8,
                 (9.8, 8.1, 6.3, 4.6, 3.3, 2.1))  # fmt: skip
    moe = _way("{:.0f} experts, top 1", (4, 8, 16), 1 - np.array([1.99, 1.941, 1.952]) / 8,
               (4.96, 5.02, 5.14))  # fmt: skip
    pick = moe[1]
    results |= {
        "made_by": results["made_by"] | {"command": "pointsman compare python-sources --out run7"},
        "data": {
            "name": "python-sources", "kind": "text",
            "inputs": {"train": 16000, "validation": 1200, "calibration": 2000, "test": 2000},
            "classes": None, "note": "Sources of the standard library, windows of 128 bytes.",
        },
        "metric": {"name": "bits per byte", "worst": 8.0, "best": 0.0, "higher_is_better": False},
        "reference": {"name": reference["name"], "quality": reference["quality"],
                      "cost": reference["cost"], "unit": "MFLOPs"},
        "ladder": ladder,
        "ways": [
            _titled("dense", "Ladder members alone", ladder),
            _titled("cascade", "Cascade of ladder members", cascade),
            _titled("exits", "Early exits", exits),
            _titled("moe", "Mixture of experts", moe),
        ],
        "random": {"points": ladder},
        "oracle": {"quality": 1 - 1.71 / 8, "cost": 3.9},
        "pick": results["pick"] | {
            "way": "moe", "knob": pick["knob"], "quality": pick["quality"], "cost": pick["cost"],
            "saved": 1 - pick["cost"] / reference["cost"], "shares": {},
            "reference_ms": None, "measured_ms": None,
        },
        "certificate": results["certificate"] | {
            "method": "betting", "knob": pick["knob"], "inputs": 2000, "tested": 3, "accepted": 3,
            "p_value": 3.1e-7, "observed_drop": 0.0015,
            "by_method": {"betting": 3.1e-7, "empirical_bernstein": 0.0004, "hoeffding": 0.31},
            "words": "With 95 % confidence the mean drop against 6 layers x 256 is at most 0.01 "
                     "of the scale on inputs like the 2000 of the calibration split.",
        },
        "trained": [
            _trained(member["name"], "ladder", int(2e5 * member["cost"]), 6, member["cost"] * 2, 31)
            for member in ladder
        ],
        "truth": {"sent_on": {"easy": 0.06, "hard": 0.94}},
    }  # fmt: skip
    return results


def crowded() -> Json:
    """Five ways of twelve points each in .93 to .98, some points at .2, and one unknown way."""
    results = features()
    rng = np.random.default_rng(0)
    names = ["cascade", "exits", "nested", "moe", "width & depth <pruned>"]
    results["ways"] = [
        _titled(name, name.capitalize(), _way(
            name + " {:.2f}", np.linspace(1, 0.1, 12),
            np.concatenate([_bend(0.978 - 0.004 * i, 0.93, 10) + rng.normal(0, 0.003, 10),
                            [0.21, 0.2 + 0.01 * i]]),
            np.geomspace(0.16, 0.003 * (1 + 0.3 * i), 12),
        ))
        for i, name in enumerate(names)
    ]  # fmt: skip
    point = results["ways"][0]["points"][3]
    results["pick"] |= {"knob": point["knob"], "quality": point["quality"], "cost": point["cost"],
                        "saved": 1 - point["cost"] / REFERENCE[2]}  # fmt: skip
    results["oracle"] = {"quality": 1.0, "cost": 0.0029}
    return results


def hostile_texts() -> Json:
    """Digits, with markup that would run a script in every text that data can give."""
    results = features()
    results["ways"][1]["points"][0]["knob"] = HOSTILE
    results["ways"][1]["title"] = HOSTILE
    results["reference"] |= {"name": HOSTILE, "unit": HOSTILE}
    results["metric"]["name"] = HOSTILE
    results["data"] |= {"classes": [HOSTILE], "name": HOSTILE, "note": HOSTILE}
    results["trained"][0]["name"] = HOSTILE
    results["certificate"]["words"] = HOSTILE
    results["made_by"]["command"] = HOSTILE
    results["pick"]["shares"] = {HOSTILE: 1.0}
    return results


VARIANTS: dict[str, Callable[[], Json]] = {
    "features": features, "uncertified": uncertified, "text": text, "crowded": crowded,
}  # fmt: skip


def with_pick(results: Json, **changes: Any) -> Json:
    """A copy of results whose pick is changed."""
    changed = copy.deepcopy(results)
    changed["pick"] |= changes
    return changed


def _named(name: str, quality: float, cost: float) -> tuple[str, str, float, float]:
    return name, name, quality, cost


def _bend(best: float, worst: float, settings: int | None = None) -> np.ndarray:
    """Qualities that fall slowly at first and fast at the end, as real frontiers do."""
    settings = settings or (6 if worst > 0.93 else 8)
    return best - (best - worst) * np.linspace(0, 1, settings) ** 2.2


def _way(knob: str, values: Sequence[float], quality: Any, cost: Any) -> list[Json]:
    return [
        {
            "knob": knob.format(v),
            "quality": round(min(float(q), 1.0), 4),
            "cost": round(float(c), 5),
        }
        for v, q, c in zip(values, quality, cost, strict=True)
    ]


def _titled(name: str, title: str, points: list[Json]) -> Json:
    best = max(point["quality"] for point in points)
    enough = [point["cost"] for point in points if point["quality"] >= REFERENCE[1]]
    metrics = {"hypervolume": best * 0.94, "aiq": best * 0.98, "apgr": 0.81,
               "cost_at_reference_quality": min(enough, default=None)}  # fmt: skip
    return {"name": name, "title": title, "points": points, "metrics": metrics}


def _trained(name: str, way: str, parameters: int, epochs: int, tflops: float, s: float) -> Json:
    return {"name": name, "way": way, "parameters": parameters, "epochs": epochs,
            "tflops": tflops, "seconds": s}  # fmt: skip
