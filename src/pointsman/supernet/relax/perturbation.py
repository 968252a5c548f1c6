"""DARTS-PT: options are kept by what the network loses without them, not by their weight.

Wang et al., "Rethinking Architecture Selection in Differentiable NAS" (2021, arXiv 2108.04392). A
large weight in the mixture need not mean a strong operation: skip connections get large weights in
a trained supernet whatever they are worth.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pointsman.supernet.relax.gates import softmax_gate
from pointsman.supernet.relax.relaxation import Relaxation, release, set_mixtures
from pointsman.supernet.space import Genotype, Option
from pointsman.supernet.supernet import Supernet


def select_by_perturbation(
    supernet: Supernet,
    relaxation: Relaxation,
    score: Callable[[Supernet], float],
    *,
    tune: Callable[[Supernet], None] = lambda supernet: None,
    seed: int = 0,
) -> Genotype:
    """Decide choice after choice, then edge after edge, by removing each in turn.

    Choices come in random order. Each of a choice's options is removed from its mixture, the others
    keep their weights, and the option without which the score is lowest stays alone. Then, in
    nodes that keep fewer edges than they have, the edges without which it is lowest stay. Options
    that the relaxation never takes are no candidates.

    Args:
        supernet: trained with mixtures; `tune` may change its weights. Mixtures end with the
            search.
        relaxation: of it, whose logits are read and left as they are; the mixture is their
            softmax, whatever its gate.
        score: of the supernet with what is in force, higher is better: on all of a held-out part,
            since on one batch it would be noise.
        tune: trains the supernet a little after each decision, with what is in force.
        seed: of the order of choices.

    Returns:
        The genotype decided on.
    """
    with torch.no_grad():
        relaxation.mix(supernet, gate=softmax_gate)
    names = {choice.name for choice in relaxation.choices}
    mixtures: dict[str, Tensor] = {
        dial.choice.name: dial.mixture.clone()
        for dial in supernet.dials
        if dial.mixture is not None and dial.choice.name in names
    }
    taken: dict[str, Option] = {
        choice.name: choice.options[at]
        for choice, at in zip(relaxation.space.choices, relaxation.in_force, strict=True)
    }

    def without(name: str, mixture: Tensor) -> float:
        set_mixtures(supernet, {**mixtures, name: mixture})
        return score(supernet)

    def settle(name: str, mixture: Tensor) -> None:
        mixtures[name] = mixture
        set_mixtures(supernet, mixtures)

    order = torch.randperm(
        len(relaxation.choices), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    for choice in (relaxation.choices[at] for at in order):
        mixture = mixtures[choice.name]
        scores = {
            at: without(choice.name, mixture.masked_fill(_only(at, mixture), 0.0))
            for at, option in enumerate(choice.options)
            if option not in relaxation.never
        }
        kept = min(scores, key=lambda at: scores[at])
        # An edge keeps its weight in its node.
        settle(choice.name, _only(kept, mixture) * mixture.sum())
        taken[choice.name] = choice.options[kept]
        tune(supernet)
    for node in relaxation.nodes:
        if node.keep < len(node.edges):
            losses = {name: without(name, torch.zeros_like(mixtures[name])) for name in node.edges}
            for name in sorted(node.edges, key=lambda name: losses[name])[node.keep :]:
                settle(name, torch.zeros_like(mixtures[name]))
                taken[name] = node.absent
            tune(supernet)
    release(supernet)
    return relaxation.space.encode(taken)


def _only(at: int, like: Tensor) -> Tensor:
    """True at one place."""
    return torch.arange(len(like), device=like.device) == at
