"""What routed layers did, layer by layer: counted from the routings that their calls returned.

Nothing is pooled over layers. A layer that sends everything to one expert shows as such even where
its neighbours have collapsed onto other experts and the sum over layers looks even.

Legend: T tokens without padding, E experts, L layers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.layer import MoE, Routing
from pointsman.route import Route
from pointsman.writing import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class LayerReport:
    """What one layer did over everything recorded, in plain numbers.

    Attributes:
        name: of the layer.
        calls: of the layer, such as micro-batches.
        tokens: routed, padding not counted.
        padding: places of the input that were padding.
        load: (E) tokens that each expert took.
        load_ratio: largest load over the mean load: 1 when even, E when one expert took everything,
            0 when nothing was taken.
        dead: experts that took nothing.
        token_entropy: nats, of a token's weights, mean over tokens: 0 where each has one expert.
        load_entropy: nats, of the shares of the load: log(E) when even.
        dropped: number of tokens that no expert took.
        dropped_ids: (call, place) of each of them, the place among the call's flattened tokens.
        router_gradient: norm of the gradient of the router's weights; None where it was not read,
            or where the router has no weights.
    """

    name: str
    calls: int
    tokens: int
    padding: int
    load: tuple[int, ...]
    load_ratio: float
    dead: tuple[int, ...]
    token_entropy: float
    load_entropy: float
    dropped: int
    dropped_ids: tuple[tuple[int, int], ...]
    router_gradient: float | None

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain JSON types."""
        found = dict(self.__dict__)
        found["load"], found["dead"] = list(self.load), list(self.dead)
        found["dropped_ids"] = [list(pair) for pair in self.dropped_ids]
        return found


@dataclass(eq=False)
class _Record:
    """Sums over the calls of one layer; they stay on the layer's device until they are read."""

    load: Tensor | None = None
    entropy: Tensor | None = None  # sum over tokens
    tokens: int = 0
    padding: int = 0
    # Of each call: which of some tokens were dropped, and their places among all (None: in order).
    dropped: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    gradient: float | None = None


class Telemetry:
    """Routing statistics of several layers, each added up over calls.

    What is added up is exact: micro-batches of one step, or the telemetries of several processes
    (`merge`), give what one large batch would. Recording makes no device wait; reading does.

    Args:
        names: of the layers, in the order in which they are shown.

    Raises:
        InputError: a name given twice.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if len(set(names)) < len(names):
            raise InputError(f"every layer of a telemetry has its own name, got {list(names)}")
        self._records = {name: _Record() for name in names}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers."""
        return tuple(self._records)

    def add(self, name: str, routing: Routing) -> None:
        """Count one call of a layer.

        Args:
            name: one of the names.
            routing: as the layer returned it. Nothing of its graph is kept.

        Raises:
            InputError: an unknown name, or another number of experts than before.
        """
        record, route = self._record(name), routing.route.detach()
        load_E, entropy = route.load(), route.entropy().sum(dtype=torch.float64)
        if record.load is not None and len(record.load) != len(load_E):
            raise InputError(
                f"{name} had {len(record.load)} experts before, got a routing to {len(load_E)}: "
                "use one name for each layer"
            )
        record.load = load_E if record.load is None else record.load + load_E
        record.entropy = entropy if record.entropy is None else record.entropy + entropy
        record.tokens += route.num_inputs
        record.padding += routing.num_tokens - route.num_inputs
        record.dropped.append(_noted(route.dropped(), routing.kept))

    def read_gradients(self, model: nn.Module) -> None:
        """Take down the norm of the router's gradient in every layer: call it after `backward`.

        Args:
            model: whose layers have the names of this telemetry, as in `named_modules`.

        Raises:
            InputError: a layer that the model lacks.
        """
        modules = dict(model.named_modules())
        for name, record in self._records.items():
            layer = modules.get(name)
            if not isinstance(layer, MoE):
                raise InputError(f"the model has no routed layer named {name!r}")
            weights = list(layer.router.parameters())
            found = [weight.grad for weight in weights if weight.grad is not None]
            if found:
                record.gradient = float(nn.utils.get_total_norm(found))
            elif weights:
                record.gradient = None

    def merge(self, *others: Telemetry) -> Telemetry:
        """The sum of this and others of the same layers, as a new telemetry.

        For data parallelism, gather the telemetries of all processes with
        `torch.distributed.all_gather_object` and merge them. Calls are numbered through; of the
        gradient norms, which do not add up, the last one is kept.

        Raises:
            InputError: other names, or another number of experts in a layer.
        """
        total = Telemetry(self.names)
        for one in (self, *others):
            if one.names != self.names:
                raise InputError(
                    f"telemetries of the same layers are merged, got {list(self.names)} "
                    f"and {list(one.names)}"
                )
            for name, record in one._records.items():
                _add(name, total._records[name], record)
        return total

    def report(self, name: str) -> LayerReport:
        """The statistics of one layer.

        Raises:
            InputError: an unknown name.
        """
        record = self._record(name)
        load = [] if record.load is None else record.load.tolist()
        entropy = 0.0 if record.entropy is None else float(record.entropy)
        pairs = sum(load)
        shares = torch.tensor(load, dtype=torch.float64) / max(pairs, 1)
        ids = _dropped_ids(record)
        return LayerReport(
            name=name,
            calls=len(record.dropped),
            tokens=record.tokens,
            padding=record.padding,
            load=tuple(load),
            load_ratio=max(load) * len(load) / pairs if pairs else 0.0,
            dead=tuple(expert for expert, count in enumerate(load) if count == 0),
            token_entropy=entropy / max(record.tokens, 1),
            load_entropy=float(torch.special.entr(shares).sum()),
            dropped=len(ids),
            dropped_ids=tuple(ids),
            router_gradient=record.gradient,
        )

    def reports(self) -> tuple[LayerReport, ...]:
        """The statistics of every layer, in order."""
        return tuple(self.report(name) for name in self._records)

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain JSON types, under `layers`."""
        return {"layers": [report.as_dict() for report in self.reports()]}

    def table(self) -> Table:
        """One row a layer, for the terminal."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, caption_justify="left")
        table.caption = "max/mean: of the load, 1 is even; H: entropy, nats"
        table.add_column("layer", justify="left", no_wrap=True)
        for column in (
            "tokens", "experts", "max/mean", "dead", "token H", "load H", "dropped", "gradient"
        ):  # fmt: skip
            table.add_column(column, justify="right", no_wrap=True)
        for one in self.reports():
            gradient = "-" if one.router_gradient is None else f"{one.router_gradient:.3g}"
            alarming = one.dead or one.load_ratio > 0.5 * len(one.load) > 1
            table.add_row(
                one.name, f"{one.tokens:,}", str(len(one.load)), f"{one.load_ratio:.2f}",
                str(len(one.dead)), f"{one.token_entropy:.2f}", f"{one.load_entropy:.2f}",
                f"{one.dropped:,}", gradient, style="bold red" if alarming else "",
            )  # fmt: skip
        return table

    def figure(self) -> Figure:
        """A chart: who took how much, layer by layer, and how far each layer is from even.

        Raises:
            InputError: nothing was recorded.
        """
        from pointsman.moe._telemetry_chart import draw

        return draw(self.reports())

    def draw(self, path: str | Path) -> Path:
        """Write the chart as PNG or SVG, by the ending of the path; whole or not at all.

        Raises:
            InputError: nothing was recorded, or another ending.
        """
        path = Path(path)
        kind = path.suffix.lstrip(".").lower()
        if kind not in ("png", "svg"):
            raise InputError(f"a chart is written as .png or .svg, got {path.name!r}")
        content = io.BytesIO()
        self.figure().savefig(content, format=kind, dpi=200)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
        return path

    def _record(self, name: str) -> _Record:
        if name not in self._records:
            known = ", ".join(self._records) or "none"
            raise InputError(f"no layer is named {name!r} here, got the names {known}")
        return self._records[name]


@contextmanager
def watch(model: nn.Module, telemetry: Telemetry | None = None) -> Iterator[Telemetry]:
    """Record every call of every routed layer inside a model, by forward hooks, meanwhile.

    A token is counted once: calls that recompute activations during the backward pass, with
    either kind of `torch.utils.checkpoint`, are left out, and micro-batches add up. At the end the
    norms of the routers' gradients are read; leave the block before they are zeroed, or call
    `read_gradients` yourself. Outside of the block a model has no hooks and pays nothing.

    A layer that was compiled before may not run the hooks: `add` what its calls return instead.

    Args:
        model: with at least one `MoE` in it.
        telemetry: to go on with, such as that of an earlier step; None starts a new one.

    Raises:
        InputError: no routed layer in the model.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoE)}
    if not layers:
        raise InputError(f"{type(model).__name__} has no routed layer to watch")
    found = Telemetry(list(layers)) if telemetry is None else telemetry
    handles = [
        layer.register_forward_hook(_Recorder(found, name)) for name, layer in layers.items()
    ]
    try:
        yield found
        found.read_gradients(model)
    finally:
        for handle in handles:
            handle.remove()


def agreement(one: Route, other: Route) -> float:
    """How alike two routes of the same tokens are: pairs in both over pairs in either, 1 if none.

    Of the same probe batch before and after a step, it shows how much routing still moves.

    Raises:
        InputError: other numbers of tokens or experts.
    """
    sizes = [(route.num_inputs, route.num_branches) for route in (one, other)]
    if sizes[0] != sizes[1]:
        raise InputError(
            "routes of the same tokens and experts are compared, "
            f"got {sizes[0]} and {sizes[1]} (tokens, experts)"
        )
    keys = [route.inputs * route.num_branches + route.branches for route in (one, other)]
    both = int(torch.isin(keys[0], keys[1]).sum())
    either = len(keys[0]) + len(keys[1]) - both
    return both / either if either else 1.0


class _Recorder:
    """Forward hook of one layer."""

    def __init__(self, telemetry: Telemetry, name: str) -> None:
        self.telemetry, self.name = telemetry, name

    def __call__(self, layer: nn.Module, inputs: object, output: tuple[Tensor, Routing]) -> None:
        # A forward call inside of a backward pass recomputes what was counted already.
        if torch._C._current_graph_task_id() == -1:
            with torch.no_grad():
                self.telemetry.add(self.name, output[1])


def _add(name: str, total: _Record, record: _Record) -> None:
    if record.load is not None and record.entropy is not None:
        load, entropy = record.load.cpu(), record.entropy.cpu()
        if total.load is not None and len(total.load) != len(load):
            raise InputError(
                f"{name} has {len(total.load)} and {len(load)} experts: "
                "telemetries of the same layers are merged"
            )
        total.load = load if total.load is None else total.load + load
        total.entropy = entropy if total.entropy is None else total.entropy + entropy
    total.tokens += record.tokens
    total.padding += record.padding
    total.dropped += record.dropped
    total.gradient = total.gradient if record.gradient is None else record.gradient


def _noted(dropped_T: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What of a call is kept to tell its dropped tokens: little, where looking costs no wait."""
    if dropped_T.device.type != "cpu":
        return dropped_T, kept
    places = dropped_T.nonzero().squeeze(1)
    places = places if kept is None else kept[places]
    return torch.ones(len(places), dtype=torch.bool), places


def _dropped_ids(record: _Record) -> list[tuple[int, int]]:
    found = []
    for call, (dropped_T, kept) in enumerate(record.dropped):
        places = dropped_T.nonzero().squeeze(1)
        places = places if kept is None else kept[places]
        found += [(call, place) for place in places.tolist()]
    return found
