"""Time of routing on a CPU: top_k, dispatch and combine, beside the usual index_add.

    python benchmarks/route.py

The reference is what most layers do: softmax, topk, sort the int64 ids, x[ids], scale the rows and
index_add them. Both sides run the same inputs in turns in one process, on one thread; the table
shows medians of process CPU time, and the ratio of the reference's to ours (above 1, ours is
faster). The branches themselves are left out: they are the same matrix products on both sides.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from pointsman.route import Route
from pointsman.select import top_k

SHAPES = ((4096, 16, 2, 512), (1024, 64, 8, 256))  # T inputs, E branches, K of each, D width
ROUNDS, WARMUP = 15, 3


def ours(scores_TE: Tensor, x_TD: Tensor, k: int) -> Tensor:
    route = top_k(scores_TE, k)
    return route.combine(route.dispatch(x_TD))


def reference(scores_TE: Tensor, x_TD: Tensor, k: int) -> Tensor:
    best_TK, branches_TK = scores_TE.topk(k, dim=1)
    weights_N = best_TK.softmax(dim=1).reshape(-1)
    order_N = branches_TK.reshape(-1).argsort(stable=True)
    branches_TK.reshape(-1).bincount(minlength=scores_TE.shape[1]).cumsum(0)
    inputs_N = order_N // k
    rows_ND = x_TD[inputs_N] * weights_N[order_N, None]
    return torch.zeros_like(x_TD).index_add(0, inputs_N, rows_ND)


def forward(run: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return run(*inputs)

    return call


def forward_backward(run: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
    def call() -> object:
        out = run(*inputs)
        return torch.autograd.grad(out, inputs, torch.ones_like(out))

    return call


def medians(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of CPU time of each call, called in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(WARMUP + ROUNDS):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if round_ >= WARMUP:
                times[name].append(1e3 * (time.process_time() - start))
    return {name: median(values) for name, values in times.items()}


def comparisons(
    num_inputs: int, num_branches: int, k: int, width: int
) -> dict[str, dict[str, Callable[[], object]]]:
    """The calls to compare: the whole, and combine alone."""
    torch.manual_seed(0)
    scores = torch.randn(num_inputs, num_branches, requires_grad=True)
    x = torch.randn(num_inputs, width, requires_grad=True)
    torch.testing.assert_close(ours(scores, x, k), reference(scores, x, k))
    route = top_k(scores, k).detach()
    order = route.by_branch()
    rows = torch.randn(len(route), width, requires_grad=True)
    weights = route.weights.clone().requires_grad_()

    def our_combine(rows: Tensor, weights: Tensor) -> Tensor:
        weighted = Route(route.inputs, route.branches, weights, num_inputs, num_branches)
        return weighted.combine(rows)

    def their_combine(rows: Tensor, weights: Tensor) -> Tensor:
        scaled = rows * weights[order.order, None]
        return torch.zeros(num_inputs, width).index_add(0, order.inputs, scaled)

    return {
        f"{what}, {way}": {"ours": wrap(mine, *inputs), "index_add": wrap(theirs, *inputs)}
        for what, mine, theirs, inputs in (
            (
                "top_k + dispatch + combine",
                lambda scores, x: ours(scores, x, k),
                lambda scores, x: reference(scores, x, k),
                (scores, x),
            ),
            ("combine alone", our_combine, their_combine, (rows, weights)),
        )
        for way, wrap in (("forward", forward), ("forward+backward", forward_backward))
    }


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, float32, 1 thread, median of {ROUNDS}, CPU ms")
    print(f"{'T, E, K, D':<22}{'what':<46}{'ours':>8}{'index_add':>11}{'ratio':>8}")
    for shape in SHAPES:
        for what, runs in comparisons(*shape).items():
            times = medians(runs)
            mine, theirs = times["ours"], times["index_add"]
            name = ", ".join(map(str, shape))
            print(f"{name:<22}{what:<46}{mine:>8.2f}{theirs:>11.2f}{theirs / mine:>8.2f}")


if __name__ == "__main__":
    main()
