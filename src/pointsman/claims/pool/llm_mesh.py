"""LLM-Mesh: several models share nodes token by token, and only take what they can serve in time.

Xu et al., "LLM-Mesh: Enabling Elastic Sharing for Serverless LLM Inference" (2025, arXiv
2507.00507).

A node runs one iteration of one model at a time, that of the request with the least headroom: the
time until its next token is due. A request is taken in only if, simulated ahead on predicted
iteration times, no token of any request would be late. Memory for keys and values grows and shrinks
in steps within one limit. New requests go where most of their model already run. The parts:
`pool.simulate.mesh` and `pool.simulate.memory`.

What was settled:
- Everything is simulated. A prefill takes 20 ms and 0.1 ms a token of the input, decoding 20 ms, 1
  ms a request and 1 us a token of context. Inputs of 50 to 500 tokens, outputs of 10 to 60. Half of
  the requests need their first token in 0.5 s and one each 0.1 s, the others in 2 s and 0.25 s. A
  request is met if no token is late. How long an output gets is known when it is asked for.
- One node, four models asked for alike, 2 to 12 requests a second, 300 requests. First come means
  longest waiting since its last token; round robin goes by models. All orders have the same
  admission, each simulating itself ahead; figures without admission decide nothing.
- Rates, deadlines and shares were set on seeds 100 and 101 before the criterion was fixed. With one
  deadline for all, and without admission, least headroom was there seen to fall behind round robin
  beyond saturation; that is why admission is part of the criterion.
- Four nodes, 55, 25, 15 and 5% of the requests to four models, 500 requests at each rate from 10 to
  45 a second; exclusive means one node a model. Capacity is the rate, between those tried, at which
  95% are met. That sharing pays hangs on how unlike the models' loads are.
- Memory: 3,000 random reservations and releases. Copying on a resize takes no time. Moving an
  instance to make room for a larger one is not built, nor nodes with processors only.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

RATES, REQUESTS = (2, 3, 4, 6, 8, 12), 300
SHARES, OFFERED, MANY = (0.55, 0.25, 0.15, 0.05), range(10, 50, 5), 500
MET = 0.95
ORDERS = ("least headroom", "first come", "round robin")


def quick() -> None:
    """With admission no token is late; without it some are; memory keeps its limit."""
    import numpy as np

    from pointsman.pool.simulate.mesh import Job, Node, Request, Turn, draw_requests, run_mesh
    from pointsman.pool.simulate.mesh import least_headroom as order

    offered = draw_requests(60, 8.0, [0.25] * 4, np.random.default_rng(0))
    outcome = run_mesh([Node()], offered)
    must(bool((outcome.met == (outcome.node >= 0)).all()), "whatever is taken is served in time")
    must(0 < outcome.met.mean() < 1, "not everything is taken")
    must(not run_mesh([Node(admission=False)], offered).met.all(), "otherwise tokens are late")
    ahead = Job(0, Request(0.0, 0, 10, 20), produced=9)
    behind = Job(1, Request(0.5, 1, 10, 20), produced=2)
    must(order(Turn([ahead, behind], 0)) is behind, "tokens already yielded count")
    must(_memory(0, 1)["memory, spare step: most used"] <= 1, "memory keeps its limit")


def _memory(seed: int, spare: int) -> dict[str, float]:
    import numpy as np

    from pointsman.pool.simulate.memory import StepMemory

    rng = np.random.default_rng(seed)
    memory = StepMemory(4, 12_000, spare=spare)
    held: list[tuple[int, float]] = []
    most = 0.0
    for _ in range(3000):
        if held and rng.random() < 0.5:
            memory.release(*held.pop(int(rng.integers(len(held)))))
        else:
            wanted = int(rng.integers(4)), float(rng.integers(60, 561))
            if memory.reserve(*wanted):
                held.append(wanted)
        most = max(most, sum(memory.granted) / memory.limit)
    name = "memory, spare step" if spare else "memory, none to spare"
    return {f"{name}: most used": most, f"{name}: resizes": memory.resizes}


def full(seed: int) -> Figures:
    """Requests met by order and rate, capacity with and without sharing, memory, wrong times."""
    return {**_orders(seed), **_capacity(seed), **_memory(seed, 0), **_memory(seed, 1)}


def _orders(seed: int) -> dict[str, float]:
    import numpy as np

    from pointsman.pool.simulate.mesh import (
        Node,
        draw_requests,
        first_come,
        least_headroom,
        round_robin,
        run_mesh,
    )

    rng = np.random.default_rng([seed, 0])
    found = {"admitted, exact: late": 0.0}
    for rate in RATES:
        offered = draw_requests(REQUESTS, rate, [0.25] * 4, rng)
        for name, order in zip(ORDERS, (least_headroom, first_come, round_robin), strict=True):
            outcome = run_mesh([Node(order)], offered)
            late = int(((outcome.node >= 0) & ~outcome.met).sum())
            found["admitted, exact: late"] += late
            found[f"{name}: met at {rate}"] = float(outcome.met.mean())
            outcome = run_mesh([Node(order, admission=False)], offered)
            found[f"{name}, no admission: met at {rate}"] = float(outcome.met.mean())
    for margin in (1.0, 1.1):
        outcome = run_mesh([Node(slower=1.1, margin=margin)], offered)
        late = ((outcome.node >= 0) & ~outcome.met).sum() / (outcome.node >= 0).sum()
        found[f"10% slower, margin {margin}: late"] = float(late)
        found[f"10% slower, margin {margin}: met"] = float(outcome.met.mean())
    return found


def _capacity(seed: int) -> dict[str, float]:
    import numpy as np

    from pointsman.pool.simulate.mesh import Node, draw_requests, run_mesh

    rng = np.random.default_rng([seed, 1])
    met: dict[str, list[float]] = {"exclusive": [], "shared": []}
    for rate in OFFERED:
        offered = draw_requests(MANY, rate, SHARES, rng)
        for name, homes in (("exclusive", [[0], [1], [2], [3]]), ("shared", None)):
            outcome = run_mesh([Node() for _ in range(4)], offered, homes=homes)
            met[name].append(float(outcome.met.mean()))
    found = {}
    for name, values in met.items():
        found[f"{name}: met at 30"] = values[OFFERED.index(30)]
        falling = np.minimum.accumulate(values)[::-1]
        found[f"{name}: capacity"] = float(np.interp(MET, falling, list(OFFERED)[::-1]))
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion."""
    at = {name: mean(measurements, name) for name in measurements[0]}
    first, *others = ORDERS
    never_behind = all(
        at[f"{first}: met at {rate}"] >= at[f"{name}: met at {rate}"]
        for name in others
        for rate in RATES
    )
    ahead = all(at[f"{first}: met at 4"] > at[f"{name}: met at 4"] for name in others)
    promised = all(
        row["admitted, exact: late"] == 0
        and row["memory, spare step: most used"] <= 1
        and row["memory, none to spare: most used"] <= 1
        for row in measurements
    )
    room = at["shared: capacity"] >= 1.25 * at["exclusive: capacity"]
    return never_behind and ahead and promised and room


CLAIM = Claim(
    slug="llm-mesh",
    paper="LLM-Mesh: Enabling Elastic Sharing for Serverless LLM Inference",
    year=2025,
    arxiv="2507.00507",
    level="pool",
    claim="Nodes shared by several models token by token, by least headroom and with requests "
    "simulated ahead before they are taken, serve more requests in time than a node for each.",
    baseline="The longest waiting first and round robin over models, with the same admission, and "
    "without; one node for each model.",
    criterion="In simulation, in the mean over seeds: on one node, with admission for all, least "
    "headroom meets at least as many requests as either other order at every rate and more at 4 a "
    "second, near saturation; with exact times no admitted request is ever late; memory never "
    "exceeds its limit; and four shared nodes have at least 1.25 times the capacity of four "
    "exclusive ones.",
    quick=quick,
    full=full,
    decide=decide,
    composition="least headroom · admission by simulating ahead · memory in steps · requests to "
    "where their model runs",
    entry="pointsman.pool.simulate.mesh.run_mesh",
    key={
        "met at 4 a second": "least headroom: met at 4",
        "round robin": "round robin: met at 4",
        "capacity, shared": "shared: capacity",
        "exclusive": "exclusive: capacity",
    },
    note="Least headroom needs the admission: without it, beyond saturation, it meets far fewer "
    "than the other orders, as whatever is latest always comes first. The promise needs right "
    "times: if all take 10% longer than predicted, with no margin, most of what was admitted is "
    "late.",
)
