"""Placements of experts by integer program, solved by HiGHS through SciPy.

Both read a trace and leave the router alone: outputs do not change, only where they are computed.

Legend: L layers, E experts, G devices, C clusters of experts (as many as devices).
"""

import sys

import numpy as np

from pointsman.errors import InputError
from pointsman.moe.parallel.cluster import Cluster, Ids, Numbers
from pointsman.moe.parallel.placement import hops, improved, shuffled, travel
from pointsman.moe.parallel.trace import Trace


class Program:
    """A mixed integer linear program, put together block by block. All variables are at least 0."""

    def __init__(self) -> None:
        self.costs: list[Numbers] = []
        self.uppers: list[Numbers] = []
        self.whole: list[Numbers] = []
        self.rows: list[tuple[Ids, Ids, Numbers]] = []  # row, column, coefficient
        self.lows: list[Numbers] = []
        self.highs: list[Numbers] = []
        self.columns = self.height = 0

    def variables(
        self,
        shape: tuple[int, ...],
        *,
        cost: Numbers | float = 0.0,
        upper: float = np.inf,
        whole: bool = False,
    ) -> Ids:
        """Numbers of new variables, in this shape."""
        count = int(np.prod(shape))
        self.costs.append(np.broadcast_to(np.asarray(cost, dtype=np.float64), shape).ravel())
        self.uppers.append(np.full(count, upper))
        self.whole.append(np.full(count, float(whole)))
        self.columns += count
        return np.arange(self.columns - count, self.columns).reshape(shape)

    def constrain(
        self, *terms: tuple[Ids, Numbers | float], low: Numbers | float, high: Numbers | float
    ) -> None:
        """Rows low <= sum of coefficient * variable <= high.

        Args:
            terms: (variables (rows, n), coefficients that broadcast to them).
            low: of each row, or one for all.
            high: likewise.
        """
        count = len(terms[0][0])
        for columns, coefficients in terms:
            row = np.repeat(np.arange(self.height, self.height + count), columns.shape[1])
            wide = np.broadcast_to(np.asarray(coefficients, dtype=np.float64), columns.shape)
            self.rows.append((row, columns.ravel(), wide.ravel()))
        self.lows.append(np.broadcast_to(np.asarray(low, dtype=np.float64), (count,)))
        self.highs.append(np.broadcast_to(np.asarray(high, dtype=np.float64), (count,)))
        self.height += count

    def solve(self, *, gap: float, node_limit: int | None = None) -> Numbers | None:
        """Values of the variables, or None where the limit came before any solution.

        Args:
            gap: relative to the optimum, at which to stop.
            node_limit: of branch and bound; None: no limit. Unlike a limit of time, it gives the
                same answer on every machine.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        row, column, value = (np.concatenate(parts) for parts in zip(*self.rows, strict=True))
        matrix = coo_array((value, (row, column)), shape=(self.height, self.columns)).tocsc()
        limit = sys.maxsize >> 32 if node_limit is None else node_limit
        found = milp(
            np.concatenate(self.costs),
            integrality=np.concatenate(self.whole),
            bounds=Bounds(0.0, np.concatenate(self.uppers)),
            constraints=LinearConstraint(
                matrix, np.concatenate(self.lows), np.concatenate(self.highs)
            ),
            options={"mip_rel_gap": gap, "node_limit": limit},
        )
        return None if found.x is None else np.asarray(found.x)


def exflow(trace: Trace, cluster: Cluster, *, node_limit: int = 1, starts: int = 16) -> Ids:
    """Experts that follow each other on one device, with equal numbers on each in every layer.

    Integer programs halve the devices again and again, each minimising the token steps that cross
    from one half to the other, nodes before the devices inside them.

    Where we depart: HiGHS instead of Gurobi, and a limit of nodes instead of one of time. As
    SciPy's solver takes no starting point and proves little at a hundred experts, the halves are
    improved layer by layer (`improved`), as are placements drawn at random, and the best is taken;
    with `starts=0` the programs alone decide, as in the paper. Its second half, contexts on every
    device so that tokens need not return, is what `travel` takes for granted, and nothing here runs
    it.

    Args:
        trace: to place by; keep another to measure on.
        cluster: whose number of devices divides E.
        node_limit: of each program.
        starts: placements drawn to improve beside that of the programs.

    Returns:
        (L, E) devices.

    Raises:
        InputError: devices that do not divide the experts, or a trace of fewer than two layers.

    Source: Yao et al. 2024, "Exploiting inter-layer expert affinity for accelerating
    mixture-of-experts model inference", arXiv 2401.08383.
    """
    _check_trace(trace, cluster)
    experts: list[Ids] = [np.arange(trace.num_experts)] * trace.layers
    halved = np.zeros((trace.layers, trace.num_experts), dtype=np.int64)
    _halve(trace, experts, range(cluster.devices), cluster.per_node, halved, node_limit)
    if not starts:
        return halved
    shape = (trace.layers, trace.num_experts, cluster.devices)
    drawn = [shuffled(*shape, seed=seed) for seed in range(starts)]
    places = [improved(trace, place, cluster) for place in (halved, *drawn)]
    return min(places, key=lambda place: travel(trace, place, cluster))


def _halve(
    trace: Trace,
    experts: list[Ids],
    devices: range,
    per_node: int,
    found: Ids,
    node_limit: int,
) -> None:
    """Place these experts of each layer on these devices, cutting between nodes first."""
    if len(devices) == 1:
        for layer, own in enumerate(experts):
            found[layer, own] = devices[0]
        return
    unit = per_node if len(devices) > per_node else 1
    left = len(devices) - len(devices) // unit // 2 * unit
    tables = [
        table[np.ix_(experts[at], experts[at + 1])] for at, table in enumerate(trace.transitions)
    ]
    right = len(experts[0]) * (len(devices) - left) // len(devices)
    side = _bisect(tables, right, node_limit)
    for half, part in enumerate((devices[:left], devices[left:])):
        inside = [layer[side[at] == half] for at, layer in enumerate(experts)]
        _halve(trace, inside, part, per_node, found, node_limit)


def _bisect(tables: list[Numbers], right: int, node_limit: int) -> Ids:
    """(L, E) 0 or 1, `right` ones in each layer: as few steps as possible between the two."""
    layers, count = len(tables) + 1, len(tables[0])
    program = Program()
    side_LE = program.variables((layers, count), upper=1, whole=True)
    program.constrain((side_LE, 1.0), low=right, high=right)
    if 2 * right == count:  # the halves may be exchanged: pin one expert
        program.constrain((side_LE[:1, :1], 1.0), low=0, high=0)
    for at, table in enumerate(tables):
        first, second = np.nonzero(table)
        pair = np.stack([side_LE[at, first], side_LE[at + 1, second]], axis=1)
        apart = program.variables((len(pair), 1), cost=table[first, second][:, None])
        for sign in (1.0, -1.0):
            difference = np.array([sign, -sign])
            program.constrain((pair, difference), (apart, -1.0), low=-np.inf, high=0.0)
    values = program.solve(gap=1e-4, node_limit=node_limit)
    if values is None:  # the limit came first: any equal halves will do to go on from
        return np.tile((np.arange(count) < right).astype(np.int64), (layers, 1))
    return np.rint(values[side_LE]).astype(np.int64)


def exflow_exact(trace: Trace, cluster: Cluster) -> Ids:
    """The optimum that `exflow` approaches, by one program over all devices; for small cases.

    Args:
        trace: to place by.
        cluster: whose number of devices divides E.

    Returns:
        (L, E) devices.

    Raises:
        InputError: devices that do not divide the experts, or a trace of fewer than two layers.
    """
    _check_trace(trace, cluster)
    devices, experts = cluster.devices, trace.num_experts
    program = Program()
    place_LEG = program.variables((trace.layers, experts, devices), upper=1, whole=True)
    each = experts // devices
    program.constrain((place_LEG.reshape(-1, devices), 1.0), low=1, high=1)
    by_device = place_LEG.transpose(0, 2, 1).reshape(-1, experts)
    program.constrain((by_device, 1.0), low=each, high=each)
    hops_GG = hops(cluster)
    for at, table in enumerate(trace.transitions):
        first, second = np.nonzero(table)
        cost = table[first, second][:, None, None] * hops_GG
        # moved[p, g, h]: the share of pair p that goes from g to h
        moved = program.variables((len(first), devices, devices), cost=cost)
        out = moved.reshape(-1, devices)
        program.constrain((out, 1.0), (place_LEG[at, first].reshape(-1, 1), -1.0), low=0, high=0)
        into = moved.transpose(0, 2, 1).reshape(-1, devices)
        target = place_LEG[at + 1, second].reshape(-1, 1)
        program.constrain((into, 1.0), (target, -1.0), low=0, high=0)
    values = program.solve(gap=0.0)
    assert values is not None, "equal numbers on each device can always be had"
    return _argmax(values[place_LEG])


def moetuner(trace: Trace, cluster: Cluster, *, gap: float = 0.025, node_limit: int = 50) -> Ids:
    """Equal load on every device first, and then little traffic over the busiest link.

    One program for each layer groups its experts into as many clusters as there are devices, of
    equal load; clusters may have different numbers of experts. A second one says which cluster goes
    to which device in each layer, so that the sum over layers of the slowest link's time is
    smallest and no device holds many more experts than others.

    Where we depart: HiGHS instead of Gurobi. Equal totals of experts cannot always be had with
    clusters of different sizes, so the excess of the fullest device is made as small as possible
    first, by its weight in the objective.

    Args:
        trace: to place by; keep another to measure on.
        cluster: of G devices, at most E.
        gap: relative, at which a program stops; 0.025 in the paper.
        node_limit: of each program.

    Returns:
        (L, E) devices.

    Raises:
        InputError: more devices than experts.

    Source: Go and Mahajan 2025, "MoETuner: optimized mixture of expert serving with balanced expert
    placement and token routing", arXiv 2502.06643.
    """
    if cluster.devices > trace.num_experts:
        raise InputError(
            f"every device needs an expert: {cluster.devices} devices, {trace.num_experts} experts"
        )
    group_LE = np.stack(
        [
            even_clusters(load_E, cluster.devices, gap=gap, node_limit=node_limit)
            for load_E in trace.load
        ]
    )
    device_LC = _map_clusters(trace, group_LE, cluster, gap, node_limit)
    return np.take_along_axis(device_LC, group_LE, axis=1)


def even_clusters(
    load_E: Numbers, count: int, *, gap: float = 0.0, node_limit: int | None = None
) -> Ids:
    """(E,) the cluster of each expert: least sum of distances of cluster loads from their mean.

    Args:
        load_E: of the experts.
        count: C, each with an expert at least.
        gap: relative, at which the program stops.
        node_limit: of the program; where it comes first, experts are put in turns by load.
    """
    experts, mean = len(load_E), float(load_E.sum()) / count
    program = Program()
    own_CE = program.variables((count, experts), upper=1, whole=True)
    distance = program.variables((count, 1), cost=1.0)
    program.constrain((own_CE.T, 1.0), low=1, high=1)
    program.constrain((own_CE, 1.0), low=1, high=experts)
    for sign in (1.0, -1.0):
        program.constrain((own_CE, sign * load_E), (distance, -1.0), low=-np.inf, high=sign * mean)
    # Clusters may be exchanged: the e-th heaviest expert is in one of the first e.
    heavy = np.argsort(-load_E, kind="stable")[:count]
    barred = np.concatenate([own_CE[at + 1 :, expert] for at, expert in enumerate(heavy)])
    if len(barred):
        program.constrain((barred[:, None], 1.0), low=0, high=0)
    values = program.solve(gap=gap, node_limit=node_limit)
    if values is None:
        return np.argsort(np.argsort(-load_E)) % count
    return _argmax(values[own_CE].T)


def _map_clusters(
    trace: Trace, group_LE: Ids, cluster: Cluster, gap: float, node_limit: int
) -> Ids:
    """(L, C) the device of each cluster: one each, with the least time of the slowest links."""
    layers, devices = trace.layers, cluster.devices
    flow_LCC = _between_clusters(trace, group_LE, devices)
    program = Program()
    place_LCG = program.variables((layers, devices, devices), upper=1, whole=True)
    program.constrain((place_LCG.reshape(-1, devices), 1.0), low=1, high=1)
    program.constrain((place_LCG.transpose(0, 2, 1).reshape(-1, devices), 1.0), low=1, high=1)
    if cluster.uniform:  # devices may be exchanged: pin the first layer
        identity = np.diagonal(place_LCG[0])[:, None]
        program.constrain((identity, 1.0), low=1, high=1)
    slow_GG = 1 / cluster.bandwidth()
    scale = max(float(flow_LCC.sum()) * float(slow_GG.max()), 1e-300)
    _limit_experts(program, place_LCG, group_LE)
    for at, flow_CC in enumerate(flow_LCC):
        slowest = program.variables((1,), cost=1.0)
        # moved[c, d, g, h]: cluster c lies on g and, in the next layer, cluster d on h
        moved = program.variables((devices,) * 4, upper=1)
        out = moved.transpose(0, 1, 2, 3).reshape(-1, devices)
        source = np.broadcast_to(place_LCG[at][:, None], (devices,) * 3).reshape(-1, 1)
        program.constrain((out, 1.0), (source, -1.0), low=0, high=0)
        into = moved.transpose(0, 1, 3, 2).reshape(-1, devices)
        target = np.broadcast_to(place_LCG[at + 1][None], (devices,) * 3).reshape(-1, 1)
        program.constrain((into, 1.0), (target, -1.0), low=0, high=0)
        link = moved.transpose(2, 3, 0, 1).reshape(devices * devices, -1)
        took = flow_CC.ravel() * slow_GG.reshape(-1, 1) / scale
        program.constrain(
            (link, took), (np.broadcast_to(slowest, (len(link), 1)), -1.0), low=-np.inf, high=0
        )
    values = program.solve(gap=gap, node_limit=node_limit)
    if values is None:
        return np.tile(np.arange(devices), (layers, 1))
    return _argmax(values[place_LCG])


def _limit_experts(program: Program, place_LCG: Ids, group_LE: Ids) -> None:
    """The fullest device holds as few experts as can be, before anything else counts."""
    layers, devices, _ = place_LCG.shape
    size_LC = np.stack([np.bincount(group, minlength=devices) for group in group_LE])
    excess = program.variables((1,), cost=10.0 * layers)
    by_device = place_LCG.transpose(2, 0, 1).reshape(devices, -1)
    program.constrain(
        (by_device, size_LC.ravel().astype(np.float64)),
        (np.broadcast_to(excess, (devices, 1)), -1.0),
        low=-np.inf,
        high=-(-group_LE.size // devices),
    )


def _argmax(values: Numbers) -> Ids:
    found: Ids = values.argmax(axis=-1)
    return found


def _between_clusters(trace: Trace, group_LE: Ids, count: int) -> Numbers:
    """(L - 1, C, C) tokens from cluster to cluster."""
    member = [np.eye(count)[group] for group in group_LE]
    tables = [member[at].T @ table @ member[at + 1] for at, table in enumerate(trace.transitions)]
    return np.stack(tables) if tables else np.zeros((0, count, count))


def _check_trace(trace: Trace, cluster: Cluster) -> None:
    if trace.layers < 2:
        raise InputError(f"affinity is between layers: a trace needs two, got {trace.layers}")
    if trace.num_experts % cluster.devices:
        raise InputError(
            f"equal numbers on {cluster.devices} devices cannot be had of {trace.num_experts} "
            "experts: use a number of devices that divides them"
        )
