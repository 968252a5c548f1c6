"""How many inputs each bound needs, and how tight it is: prints the tables of docs/guarantee.md.

    python benchmarks/bounds.py

Drops are simulated from three distributions with a true mean of 0.002; medians over fixed seeds.
Takes under a minute on one core.
"""

import time

import numpy as np

from pointsman.frontier import METHODS, p_value, upper_bound

LIMIT, CONFIDENCE = 0.01, 0.95
SIZES = (500, 2000, 4000)
RUNS, BOUND_RUNS = 121, 41  # simulations of the first column, and of the others
MOST = 100_000


def right_or_wrong(rng, n, loss, win):
    u = rng.random(n)
    return np.where(u < loss, 1.0, np.where(u < loss + win, -1.0, 0.0))


def bits_per_byte(rng, n):
    """A fifth of the inputs take the cheap way and lose 0.01 on average, the others nothing."""
    return np.where(rng.random(n) < 0.2, np.clip(rng.normal(0.01, 0.03, n), -1, 1), 0.0)


SCENARIOS = {
    "right or wrong, 1% differ": lambda rng, n: right_or_wrong(rng, n, 0.006, 0.004),
    "right or wrong, 5% differ": lambda rng, n: right_or_wrong(rng, n, 0.026, 0.024),
    "bits per byte, std 0.014": bits_per_byte,
}


def inputs_for_half(streams, method):
    """The least number of inputs at which at least half of the streams are certified, to 2%."""

    def certified(n):
        return np.median([p_value(row[:n], LIMIT, method) for row in streams]) <= 1 - CONFIDENCE

    high = 64
    while not certified(high):
        if high == MOST:
            return None
        high = min(2 * high, MOST)
    low = high // 2
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if certified(middle) else (middle, high)
    return high


def main():
    start = time.perf_counter()
    columns = [f"{size:,}" for size in SIZES]
    for name, draw in SCENARIOS.items():
        rng = np.random.default_rng(0)
        streams = [draw(rng, MOST) for _ in range(RUNS)]
        print(f"\n**{name}**\n")
        print("| method | inputs needed | " + " | ".join(f"bound at {c}" for c in columns) + " |")
        print("|---|---:|" + "---:|" * len(columns))
        for method in METHODS:
            if method == "exact" and not name.startswith("right"):
                continue
            needed = inputs_for_half(streams, method)
            bounds = [
                np.median([upper_bound(r[:n], CONFIDENCE, method) for r in streams[:BOUND_RUNS]])
                for n in SIZES
            ]
            cells = [f"> {MOST:,}" if needed is None else f"{needed:,}"]
            cells += [f"{bound:.4f}" for bound in bounds]
            print(f"| {method} | " + " | ".join(cells) + " |", flush=True)
    print(
        f"\n{RUNS} simulations ({BOUND_RUNS} for the bounds), {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
