"""Where the experts of each layer lie, judged by a trace of tokens on a simulated cluster.

A placement is an int64 array (L, E) of devices. Tokens are taken to stay where their expert was
until the next layer sends them on. `programs` has placements by integer program.

Legend: L layers, E experts, G devices.
"""

import numpy as np

from pointsman.errors import InputError
from pointsman.moe.parallel.cluster import Cluster, Ids, Numbers
from pointsman.moe.parallel.trace import Trace


def contiguous(layers: int, experts: int, devices: int) -> Ids:
    """Equal blocks in order, which is what most systems do without asking.

    Args:
        layers: L.
        experts: E.
        devices: G, at most E.

    Raises:
        InputError: more devices than experts, or none.
    """
    _check_counts(experts, devices)
    return np.tile(np.arange(experts) * devices // experts, (layers, 1))


def shuffled(layers: int, experts: int, devices: int, *, seed: int) -> Ids:
    """Equal numbers on each device, drawn anew for each layer.

    Args:
        layers: L.
        experts: E.
        devices: G, at most E.
        seed: of the draw.

    Raises:
        InputError: more devices than experts, or none.
    """
    return np.random.default_rng(seed).permuted(contiguous(layers, experts, devices), axis=1)


def greedy(trace: Trace, devices: int) -> Ids:
    """Experts of a layer by falling load, each to the least loaded device that has room.

    Args:
        trace: to place by.
        devices: G, at most E.

    Raises:
        InputError: more devices than experts, or none.
    """
    experts = trace.num_experts
    _check_counts(experts, devices)
    found = np.zeros((trace.layers, experts), dtype=np.int64)
    for layer, load_E in enumerate(trace.load):
        total, room = np.zeros(devices), np.full(devices, -(-experts // devices))
        for expert in np.argsort(-load_E, kind="stable"):
            device = int(np.argmin(np.where(room > 0, total, np.inf)))
            found[layer, expert] = device
            total[device] += load_E[expert]
            room[device] -= 1
    return found


def chained(trace: Trace, devices: int) -> Ids:
    """Layer by layer, the placement that fits the layer before it best: an assignment problem each.

    Equal numbers of experts on each device. It never looks ahead; `exflow` does.

    Args:
        trace: to place by.
        devices: G, a divisor of E.

    Raises:
        InputError: devices that do not divide the experts.
    """
    if devices < 1 or trace.num_experts % devices:
        raise InputError(f"{devices} devices do not divide {trace.num_experts} experts")
    found = contiguous(trace.layers, trace.num_experts, devices)
    for layer in range(1, trace.layers):
        found[layer] = best_layer(_arrivals(trace, found, layer, devices))
    return found


def improved(trace: Trace, placement: Ids, cluster: Cluster) -> Ids:
    """A placement no worse than this one, by placing one layer at a time between its neighbours.

    With all other layers fixed the best placement of one is an assignment problem, so each step is
    exact; it ends where no layer can do better alone. Numbers of experts on devices stay as given.

    Args:
        trace: to place by.
        placement: (L, E) to begin with.
        cluster: whose hops count, see `travel`.
    """
    placement, hops_GG = placement.copy(), hops(cluster)
    while True:
        before = _cost(trace, placement, hops_GG)
        for layer in range(trace.layers):
            saved_EG = np.zeros((trace.num_experts, cluster.devices))
            if layer:
                saved_EG -= _arrivals(trace, placement, layer, cluster.devices) @ hops_GG
            if layer + 1 < trace.layers:
                next_EG = _indicator(placement[layer + 1], cluster.devices)
                saved_EG -= trace.transitions[layer] @ next_EG @ hops_GG
            placement[layer] = best_layer(saved_EG, placement[layer])
        if _cost(trace, placement, hops_GG) >= before - 1e-9:
            return placement


def best_layer(gain_EG: Numbers, like: Ids | None = None) -> Ids:
    """(E,) devices of the largest total gain, each device with as many experts as in `like`.

    Args:
        gain_EG: of putting an expert on a device.
        like: (E,) devices to take the numbers from; None: equal numbers.
    """
    from scipy.optimize import linear_sum_assignment

    experts, devices = gain_EG.shape
    slots = np.arange(experts) * devices // experts if like is None else np.sort(like)
    rows, columns = linear_sum_assignment(gain_EG[:, slots], maximize=True)
    found = np.zeros(experts, dtype=np.int64)
    found[rows] = slots[columns]
    return found


def imbalance(trace: Trace, placement: Ids, devices: int) -> float:
    """Load of the fullest device over the mean, less one, in the mean over layers.

    Raises:
        InputError: a placement that does not fit the trace.
    """
    _check_placement(trace, placement, devices)
    load_LG = np.stack(
        [
            np.bincount(place, load, devices)
            for place, load in zip(placement, trace.load, strict=True)
        ]
    )
    return float((load_LG.max(axis=1) / np.maximum(load_LG.mean(axis=1), 1e-12)).mean() - 1)


def crossing(trace: Trace, placement: Ids, devices: int) -> float:
    """Share of the steps from layer to layer that go to another device.

    Raises:
        InputError: a placement that does not fit the trace.
    """
    _check_placement(trace, placement, devices)
    return travel(trace, placement, Cluster(1, devices))


def travel(trace: Trace, placement: Ids, cluster: Cluster) -> float:
    """Mean hops of a step: 0 on one device, 1 inside a node, 2 between nodes.

    Raises:
        InputError: a placement that does not fit the trace.
    """
    _check_placement(trace, placement, cluster.devices)
    return _cost(trace, placement, hops(cluster)) / max(float(trace.transitions.sum()), 1.0)


def seconds(
    trace: Trace, placement: Ids, cluster: Cluster, *, row_bytes: float, row_seconds: float
) -> float:
    """Of all layers: each as long as its fullest device computes and its busiest link sends.

    Args:
        trace: of the tokens.
        placement: (L, E).
        cluster: that runs them.
        row_bytes: bytes of a token.
        row_seconds: of an expert for one token.

    Raises:
        InputError: a placement that does not fit the trace.
    """
    _check_placement(trace, placement, cluster.devices)
    compute = sum(
        np.bincount(place, load, cluster.devices).max() * row_seconds
        for place, load in zip(placement, trace.load, strict=True)
    )
    sent = sum(
        (flow * row_bytes / cluster.bandwidth()).max()
        for flow in flows(trace, placement, cluster.devices)
    )
    return float(compute + sent)


def flows(trace: Trace, placement: Ids, devices: int) -> Numbers:
    """(L - 1, G, G): steps from device to device between one layer and the next."""
    found = np.zeros((max(trace.layers - 1, 0), devices, devices))
    for at, table_EE in enumerate(trace.transitions):
        arrivals = _indicator(placement[at], devices).T @ table_EE
        found[at] = arrivals @ _indicator(placement[at + 1], devices)
    return found


def hops(cluster: Cluster) -> Numbers:
    """(G, G): 0 on one device, 1 inside a node, 2 between nodes; with one device a node, 1."""
    device_G = np.arange(cluster.devices)
    node_G = cluster.node_of(device_G)
    other = 1.0 if cluster.per_node == 1 else 2.0
    table = np.where(node_G[:, None] == node_G, 1.0, other)
    np.fill_diagonal(table, 0.0)
    return table


def _cost(trace: Trace, placement: Ids, hops_GG: Numbers) -> float:
    return float((flows(trace, placement, len(hops_GG)) * hops_GG).sum())


def _arrivals(trace: Trace, placement: Ids, layer: int, devices: int) -> Numbers:
    """(E, G): tokens of each expert of a layer that come from each device."""
    arrivals: Numbers = trace.transitions[layer - 1].T @ _indicator(placement[layer - 1], devices)
    return arrivals


def _indicator(place_E: Ids, devices: int) -> Numbers:
    table: Numbers = np.eye(devices)[place_E]
    return table


def _check_counts(experts: int, devices: int) -> None:
    if not 1 <= devices <= experts:
        raise InputError(f"{experts} experts are placed on 1 to {experts} devices, got {devices}")


def _check_placement(trace: Trace, placement: Ids, devices: int) -> None:
    shape = (trace.layers, trace.num_experts)
    wrong = placement.size and not 0 <= placement.min() <= placement.max() < devices
    if placement.shape != shape or placement.dtype != np.int64 or wrong:
        raise InputError(
            f"a placement is an int64 array {shape} of devices below {devices}, got "
            f"{placement.dtype} of shape {placement.shape}"
        )
