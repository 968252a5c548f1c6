"""Time and memory of a routed layer, beside a dense layer of equal FLOPs and Hugging Face's OLMoE.

    python benchmarks/moe.py [--threads 1] [--rounds 15] [--shapes 0 1 2] [--json moe.json]

Every contender is a gated SiLU feed-forward layer: ours, the dense one of hidden width k * F, and
OLMoE's block with its experts run by a loop ("eager"), by `grouped_mm` and, for few tokens, by
`batched_mm`. Ours and OLMoE's have the same weights, and equal outputs and gradients are asserted
before anything is timed. They run in turns in one process; the table shows medians of process CPU
time and of wall time in milliseconds (on a GPU wall time alone), then ratios with their goals.

The chosen experts' matrix products by themselves are timed too: no way of running them takes less.
Memory is what a forward and backward pass adds to the resident set at its peak, in a process of its
own, less the gradients of the weights of experts that were used.

Legend: T tokens, D width, F hidden width of one expert, E experts, K = k of each token.
"""

import argparse
import ctypes
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from pointsman.moe import FeedForwardExperts, MoE
from pointsman.select import top_k


class Size(NamedTuple):
    tokens: int
    width: int
    hidden: int
    experts: int
    k: int


SIZES = (
    Size(1024, 256, 512, 8, 2),
    Size(1024, 256, 128, 64, 8),
    Size(4096, 512, 1024, 16, 2),
    Size(64, 256, 512, 8, 2),
    Size(1, 512, 256, 64, 8),
)
# Goals on a CPU in float32: forward and backward at most so many times the dense layer's time.
DENSE_GOALS = (1.25, 1.5, 1.25, 2.0, None)
Call = Callable[[], object]


class Dense(nn.Module):
    """One gated feed-forward layer with the FLOPs of the k experts of a token."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        hidden = size.k * size.hidden
        self.up = nn.Linear(size.width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, size.width, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        gate, plain = self.up(x_TD).chunk(2, dim=-1)
        answer: Tensor = self.down(silu(gate) * plain)
        return answer


def our_layer(size: Size) -> MoE:
    bank = FeedForwardExperts(
        size.experts, size.width, size.hidden, activation="silu", gated=True, bias=False
    )
    router = nn.Linear(size.width, size.experts, bias=False)
    return MoE(router, partial(top_k, k=size.k), bank)


def olmoe(size: Size, moe: MoE, implementation: str) -> nn.Module:
    """Hugging Face's block with our layer's weights."""
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config = OlmoeConfig(
        hidden_size=size.width,
        intermediate_size=size.hidden,
        num_experts=size.experts,
        num_experts_per_tok=size.k,
        norm_topk_prob=True,
    )
    config._experts_implementation = implementation
    block: nn.Module = OlmoeSparseMoeBlock(config)
    block.load_state_dict(
        {
            "gate.weight": moe.router.weight,
            "experts.gate_up_proj": moe.experts.up_EFD,
            "experts.down_proj": moe.experts.down_EDF,
        }
    )
    return block.to(moe.router.weight)


def contenders(
    size: Size, dtype: torch.dtype, device: str
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions from tokens (T, D) to answers (T, D)."""
    torch.manual_seed(0)
    moe = our_layer(size).to(device, dtype)
    found: dict[str, Callable[[Tensor], Tensor]] = {"ours": _First(moe)}
    implementations = ["eager", "grouped_mm"] + ["batched_mm"] * (size.tokens <= 64)
    for implementation in implementations:
        block = olmoe(size, moe, implementation)
        found[f"HF {implementation}"] = _Batched(block)
    found["dense"] = Dense(size).to(device, dtype)
    return found


class _First(nn.Module):
    def __init__(self, moe: MoE) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.moe(x)[0]
        return answer


class _Batched(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.block(x[None])[0]
        return answer


def assert_same(layers: dict[str, Any], x: Tensor) -> None:
    """Outputs and gradients of the tokens, of ours and each of Hugging Face's."""
    loose = {} if x.dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    found = {}
    for name, layer in layers.items():
        if name != "dense":
            y = layer(x)
            found[name] = (y, *torch.autograd.grad(y, x, torch.ones_like(y)))
    for name, theirs in found.items():
        torch.testing.assert_close(
            found["ours"], theirs, msg=lambda m, n=name: f"{n}: {m}", **loose
        )


def forward(layer: Any, x: Tensor) -> Call:
    def call() -> object:
        with torch.no_grad():
            return layer(x)

    return call


def forward_backward(layer: Any, x: Tensor) -> Call:
    seed = torch.randn_like(x)

    def call() -> None:
        for weight in layer.parameters():
            weight.grad = None
        x.grad = None
        layer(x).backward(seed)

    return call


def products(moe: MoE, x: Tensor, *, backward: bool) -> Call:
    """The chosen experts' matrix products by themselves, into memory that is there.

    Nothing is routed, moved or activated: what no way of running these experts can do without. For
    one token they are matrix-vector products.
    """
    bank = moe.experts
    order = moe(x)[1].route.by_branch()
    offsets, rows = order.offsets.tolist(), x.detach().index_select(0, order.inputs)
    up, down = bank.up_EFD.detach(), bank.down_EDF.detach()
    hidden, active = (
        rows.new_zeros(len(rows), up.shape[1]),
        rows.new_zeros(len(rows), down.shape[2]),
    )
    grad, grad_up, grad_down = rows.clone(), torch.zeros_like(up), torch.zeros_like(down)
    used = [(e, a, b) for e, (a, b) in enumerate(pairwise(offsets)) if a < b]
    pieces = [
        (up[e], down[e], grad_up[e], grad_down[e], *(t[a:b] for t in (rows, hidden, active, grad)))
        for e, a, b in used
    ]

    def call() -> None:
        for w, v, dw, dv, x, h, a, g in pieces:
            if len(x) == 1:
                torch.mv(w, x[0], out=h[0])
                torch.mv(v, a[0], out=g[0])
            else:
                torch.mm(x, w.t(), out=h)
                torch.mm(a, v.t(), out=g)
            if backward:
                torch.mm(g.t(), a, out=dv)
                torch.mm(g, v, out=a)
                torch.mm(h.t(), x, out=dw)
                torch.mm(h, w, out=x)
        rows.fill_(1)  # so that repeats do not run into infinity

    return call


def timed(calls: dict[str, Call], device: str, rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of process CPU time and of wall time of each, called in turns."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    repeats = dict.fromkeys(calls, 1)
    for round_ in range(2 + rounds):
        for name, call in calls.items():
            wait()
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(repeats[name]):
                call()
            wait()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if round_ == 1:  # short calls are repeated until the clock can tell
                repeats[name] = max(1, int(2e-3 / wall))
            elif round_ > 1:
                found[name].append((1e3 * cpu / repeats[name], 1e3 * wall / repeats[name]))
    return {
        name: (median(cpu for cpu, _ in all_), median(wall for _, wall in all_))
        for name, all_ in found.items()
    }


def row(size: Size, dtype: torch.dtype, device: str, rounds: int) -> dict[str, Any]:
    """Everything that is timed at one size and type."""
    layers = contenders(size, dtype, device)
    x = torch.randn(size.tokens, size.width, device=device, dtype=dtype, requires_grad=True)
    assert_same(layers, x)
    calls = {name: forward(layer, x) for name, layer in layers.items()}
    moe: MoE = layers["ours"].moe  # type: ignore[attr-defined]
    calls["products"] = products(moe, x, backward=False)
    times = {"forward": timed(calls, device, rounds)}
    calls = {name: forward_backward(layer, x) for name, layer in layers.items()}
    calls["products"] = products(moe, x, backward=True)
    times["forward+backward"] = timed(calls, device, rounds)
    return {
        "size": size._asdict(),
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
        "times": times,
    }


def ratios(row: dict[str, Any], clock: int) -> dict[str, tuple[float, float | None]]:
    """Ratio and goal: ours to dense and to the products alone (at most), best HF to ours (at
    least)."""
    both = {way: {n: t[clock] for n, t in times.items()} for way, times in row["times"].items()}
    size = Size(**row["size"])
    judged = row["device"] == "cpu" and row["dtype"] == "float32"
    goal = DENSE_GOALS[SIZES.index(size)] if judged else None
    found: dict[str, tuple[float, float | None]] = {}
    for way, times in both.items():
        best = min(time for name, time in times.items() if name.startswith("HF"))
        backward = way == "forward+backward"
        found[f"{way}: ours / dense"] = times["ours"] / times["dense"], goal if backward else None
        found[f"{way}: best HF / ours"] = best / times["ours"], 1.0 if backward and judged else None
        alone = 2.0 if judged and size.tokens == 1 and not backward else None
        found[f"{way}: ours / products"] = times["ours"] / times["products"], alone
    return found


# ------------------------------------------------------------------------------------ memory


def peak_memory(size: Size) -> dict[str, float]:
    """MiB added at the peak of a forward and backward pass, each in a process of its own."""
    found = {}
    for which in ("ours", "dense"):
        command = [sys.executable, __file__, "--measure-memory", which, *map(str, size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[which] = float(done.stdout)
    # What routing cannot do without: the rows sent out and the answers, kept for the backward pass.
    found["copies"] = 2 * size.tokens * size.k * size.width * 4 / 2**20
    found["ratio"] = found["ours"] / (found["dense"] + found["copies"])
    return found


def measure_memory(which: str, size: Size) -> float:
    """MiB of this process's resident set, at the peak over what it was, less weight gradients."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layer = _First(our_layer(size)) if which == "ours" else Dense(size)
    x = torch.randn(size.tokens, size.width, requires_grad=True)
    layer(x).sum().backward()  # what the first call loads and keeps is not counted
    weights = list(layer.parameters())
    for weight in weights:
        weight.grad = None
    x.grad, seed = None, torch.randn_like(x)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmHWM")
    layer(x).backward(seed)
    peak, grads = _status("VmHWM"), 0
    for weight in weights:
        assert weight.grad is not None
        parts = weight.grad if weight.ndim == 3 else [weight.grad]
        grads += sum(part.nbytes for part in parts if part.any())
    return peak - before - grads / 2**20


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {name} on this system: memory is measured on Linux")


# ------------------------------------------------------------------------------------ output


def show(row: dict[str, Any]) -> None:
    clock = 0 if row["device"] == "cpu" else 1
    print(f"\n{tuple(row['size'].values())} {row['dtype']} {row['device']}")
    for way, times in row["times"].items():
        cells = "  ".join(f"{name} {cpu:.2f}/{wall:.2f}" for name, (cpu, wall) in times.items())
        print(f"  {way + ', ms CPU/wall:':<30} {cells}")
    for name, (ratio, goal) in ratios(row, clock).items():
        print(f"  {name:<36} {ratio:6.2f}" + ("" if goal is None else f"   goal {goal:g}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", type=int, nargs="*", default=list(range(len(SIZES))))
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure-memory", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_memory:
        which, *numbers = arguments.measure_memory
        print(measure_memory(which, Size(*map(int, numbers))))
        return
    torch.set_num_threads(arguments.threads)
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {arguments.threads} thread(s)",
    }
    print(", ".join(about.values()))
    rows = []
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for number in arguments.shapes:
            for dtype in arguments.dtypes:
                rows.append(row(SIZES[number], getattr(torch, dtype), device, arguments.rounds))
                show(rows[-1])
    memory = {}
    if not arguments.no_memory:
        print("\npeak MiB of forward+backward beside weights and their gradients, goal 1.2")
        for number in arguments.shapes:
            memory[number] = peak_memory(SIZES[number])
            print(f"  {tuple(SIZES[number])}: " + json.dumps(memory[number]))
    if arguments.json:
        arguments.json.write_text(json.dumps({**about, "rows": rows, "memory": memory}, indent=1))


if __name__ == "__main__":
    main()
