"""Which choice breaks a network: what all failed evaluations of a search have in common."""

from collections.abc import Sequence

from pointsman.supernet.search.problem import Evaluation
from pointsman.supernet.space import Option, Space


def breaking_options(space: Space, evaluations: Sequence[Evaluation]) -> list[tuple[str, Option]]:
    """Options with which every evaluation failed, at least two, while others of the choice ran.

    Args:
        space: of the genotypes.
        evaluations: of one search.

    Returns:
        (choice, option), those seen most often first.
    """
    failed: dict[tuple[str, Option], int] = {}
    ran: set[tuple[str, Option]] = set()
    for each in evaluations:
        for pair in space.decode(each.genotype).items():
            if each.failed:
                failed[pair] = failed.get(pair, 0) + 1
            else:
                ran.add(pair)
    running = {name for name, _ in ran}
    found = [
        pair
        for pair, times in failed.items()
        if times > 1 and pair not in ran and pair[0] in running
    ]
    return sorted(found, key=lambda pair: -failed[pair])
