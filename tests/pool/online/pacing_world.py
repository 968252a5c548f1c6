"""A served stream for pacers: arrivals, costs with noise, and a policy that knows old prices."""

import numpy as np

PERIOD = 86_400.0
CHEAPEST, DEAREST = 0.001, 0.02  # US$ a call, as the policy file has it


def arrivals(kind, number, rng, *, periods):
    """Sorted times of about `number` requests a period."""
    times = []
    for period in range(periods):
        if kind == "even":
            gone = rng.random(rng.poisson(number))
        elif kind == "day and night":
            gone = rng.beta(4, 3, size=rng.poisson(number))
        else:  # two thirds come evenly, a third in five bursts of some minutes
            calm = rng.random(rng.poisson(number * 2 / 3))
            at = rng.uniform(0.02, 0.98, size=5)
            burst = rng.choice(at, size=rng.poisson(number / 3))
            gone = np.concatenate([calm, burst + rng.uniform(0, 0.005, size=burst.size)])
        times.append(period + np.clip(gone, 0, 1 - 1e-9))
    return PERIOD * np.sort(np.concatenate(times))


def serve(pacer, times, rng, *, price=lambda time: 1.0, delay=3):
    """US$ spent in each period; calls are settled `delay` requests later."""
    spent = np.zeros(int(times[-1] // PERIOD) + 1)
    under_way = []
    for now in times:
        target = pacer.target_cost(now)
        expected = min(max(target, CHEAPEST), DEAREST)  # the mean cost of the mix on the hull
        cost = expected * price(now) * rng.lognormal(-0.32, 0.8)  # of mean 1 and heavy tail
        pacer.request(expected, now)
        under_way.append((cost, expected, now))
        if len(under_way) > delay:
            cost, expected, _ = under_way.pop(0)
            pacer.spend(cost, expected, now)
        spent[int(now // PERIOD)] += under_way[-1][0]
    return spent
