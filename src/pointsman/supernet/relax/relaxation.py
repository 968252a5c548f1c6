"""The parameters of a relaxed search: logits of options and of edges, and what they decide.

Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search" (2018, arXiv 1806.09055): the
choice between options becomes a mixture whose weights are learned with the network, and at the end
the strongest option is taken.

Legend: E options of a choice, or edges into a node.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.elastic.dial import Dial, Elastic, elastic_modules
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.elastic.parts import Cut
from pointsman.supernet.elastic.sliced import Sliced
from pointsman.supernet.relax.gates import Draw, Gate, softmax_gate
from pointsman.supernet.space import Choice, Genotype, Option
from pointsman.supernet.supernet import Supernet


@dataclass(frozen=True)
class Node:
    """A node of a cell that keeps some of the edges that enter it.

    Args:
        edges: names of the choices of its edges.
        keep: how many of them stay.
        absent: the option that stands for "no edge".

    Raises:
        InputError: fewer edges than are to stay, or none to stay.
    """

    edges: tuple[str, ...]
    keep: int = 2
    absent: Option = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= len(self.edges):
            raise InputError(
                f"a node keeps between 1 and all of its {len(self.edges)} edges, got {self.keep}"
            )


class Relaxation(nn.Module):
    """Architecture parameters of a supernet, which mix the options of its choices.

    Its parameters are those of the architecture alone: the supernet is handed in where its dials
    are set, so that several copies of one supernet can share a relaxation.

    Args:
        supernet: its choices are relaxed; it is not kept.
        only: names of the choices to relax; None: all that can be mixed. The others stay at what is
            in force now.
        nodes: where edges compete. An edge's options are weighed with its share in its node.
        gate: of options.
        edge_gate: of edges; None: edges are not weighed, and the strength of one is the largest
            probability among its options.
        never: options that are not taken in the end, as DARTS treats "none".
        spread: standard deviation of the logits at first, around 0.
        seed: of the logits.

    Raises:
        InputError: a choice that cannot be mixed, or a node of edges that are not relaxed.
    """

    def __init__(
        self,
        supernet: Supernet,
        *,
        only: Sequence[str] | None = None,
        nodes: Sequence[Node] = (),
        gate: Gate = softmax_gate,
        edge_gate: Gate | None = None,
        never: Sequence[Option] = (),
        spread: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.space, self.in_force = supernet.space, supernet.in_force
        self.choices = _to_relax(supernet, only)
        self.nodes, self.never = tuple(nodes), tuple(never)
        self.gate, self.edge_gate = gate, edge_gate
        self._check()
        generator = torch.Generator().manual_seed(seed)
        like = next(supernet.parameters(), torch.zeros(1))

        def logits(size: int) -> nn.Parameter:
            drawn = spread * torch.randn(size, generator=generator)
            return nn.Parameter(drawn.to(like))

        self.alpha = nn.ParameterList([logits(len(choice.options)) for choice in self.choices])
        edges = self.nodes if edge_gate else ()
        self.beta = nn.ParameterList([logits(len(node.edges)) for node in edges])

    def _check(self) -> None:
        known = {choice.name: choice for choice in self.choices}
        for choice in self.choices:
            if set(choice.options) <= set(self.never):
                raise InputError(f"{choice.name!r} has no option that may be taken in the end")
        for name in (name for node in self.nodes for name in node.edges):
            if name not in known:
                raise InputError(f"edges are relaxed choices, {list(known)}, got {name!r}")
        for node in self.nodes:
            if node.keep < len(node.edges):
                for name in node.edges:
                    known[name].index(node.absent)

    def mix(self, supernet: Supernet, draw: Draw | None = None, gate: Gate | None = None) -> None:
        """Put mixtures in force, with gradients to the logits unless they are switched off.

        Args:
            supernet: the one it was made for, or a copy.
            draw: for gates that are random or change as the search goes on.
            gate: of options, instead of its own.
        """
        draw, gate = draw or Draw(), gate or self.gate
        mixtures = {
            choice.name: gate(alpha, 1, draw)
            for choice, alpha in zip(self.choices, self.alpha, strict=True)
        }
        if self.edge_gate is not None:
            for node, beta in zip(self.nodes, self.beta, strict=True):
                shares = self.edge_gate(beta, node.keep, draw)
                for at, name in enumerate(node.edges):
                    mixtures[name] = mixtures[name] * shares[at]
        set_mixtures(supernet, mixtures)

    def probabilities(self) -> dict[str, Tensor]:
        """(E,) of the options of each choice, without gradients."""
        pairs = zip(self.choices, self.alpha, strict=True)
        return {choice.name: alpha.detach().softmax(dim=0) for choice, alpha in pairs}

    def shares(self) -> dict[str, float]:
        """Of each edge in its node; empty where edges are not weighed."""
        return {
            name: float(share)
            for node, beta in zip(self.nodes, self.beta, strict=False)
            for name, share in zip(node.edges, beta.detach().softmax(dim=0), strict=True)
        }

    def derive(self, *, disentangled: bool = False) -> Genotype:
        """The strongest option of each choice, and the strongest edges of each node.

        Args:
            disentangled: edges are ranked by their shares alone, as ROME does; otherwise by share
                times the largest probability among the options that may be taken.
        """
        taken = {
            c.name: c.options[i] for c, i in zip(self.space.choices, self.in_force, strict=True)
        }
        best: dict[str, float] = {}
        for choice, p_E in zip(self.choices, self.probabilities().values(), strict=True):
            allowed = [at for at, option in enumerate(choice.options) if option not in self.never]
            first = max(allowed, key=lambda at: float(p_E[at]))
            taken[choice.name], best[choice.name] = choice.options[first], float(p_E[first])
        shares = self.shares()
        for node in self.nodes:
            strengths = {
                name: shares.get(name, 1.0) * (1.0 if disentangled else best[name])
                for name in node.edges
            }
            kept = sorted(node.edges, key=lambda name: -strengths[name])[: node.keep]
            taken.update({name: node.absent for name in node.edges if name not in kept})
        return self.space.encode(taken)


def set_mixtures(supernet: Supernet, mixtures: dict[str, Tensor]) -> None:
    """Put mixtures in force on the dials of these names; the other dials stay as they are.

    A mixture of zeros alone, as of an edge that is left out, gives its first option the smallest
    normal number: something has to be computed for its shape, and it adds nothing.
    """
    for dial in supernet.dials:
        mixture = mixtures.get(dial.choice.name, dial.mixture)
        if mixture is not None and not bool(mixture.detach().any()):
            tiny = torch.finfo(mixture.dtype).tiny
            mixture = mixture + tiny * (torch.arange(len(mixture), device=mixture.device) == 0)
        dial.mixture = mixture


def release(supernet: Supernet) -> None:
    """End all mixtures: the option in force before them is in force again."""
    for dial in supernet.dials:
        dial.mixture = None


def _to_relax(supernet: Supernet, only: Sequence[str] | None) -> tuple[Choice, ...]:
    """Choices all of whose modules can mix."""
    can: dict[str, bool] = {}
    for module in elastic_modules(supernet):
        for dial, mixes in _mixes(module):
            can[dial.choice.name] = can.get(dial.choice.name, True) and mixes
    able = [name for name in supernet.space.names if can[name]]
    wanted = able if only is None else only
    for name in wanted:
        if name not in able:
            raise InputError(f"the choices whose modules can mix are {able}, got {name!r}")
    if not wanted:
        raise InputError("nothing in this supernet can mix: have a OneOf, or elastic widths, in it")
    return tuple(choice for choice in supernet.space.choices if choice.name in set(wanted))


def _mixes(module: nn.Module) -> Iterator[tuple[Dial, bool]]:
    """The dials of an elastic module, and whether it can mix their options."""
    if isinstance(module, Sliced):
        for part in module.parts:  # slices of tensors overlap and add up; blocks do not
            yield part.dial, isinstance(part, Cut)
    elif isinstance(module, Elastic):
        mixes = isinstance(module, OneOf) or bool(getattr(module, "mixes", False))
        yield from ((dial, mixes) for dial in module.dials())
