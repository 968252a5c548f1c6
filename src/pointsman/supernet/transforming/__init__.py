"""Networks made from a trained one: edits that keep its function, and policies that choose edits.

Path-level transformation (`replicated`, `split`, `with_node`, `cell_space`, `path_level_search`)
and compression in two stages (`policy_search` with `CompressionReward`).
"""

from pointsman.supernet.transforming.branches import (
    Branches,
    edited,
    part_of,
    replace_identity,
    replicated,
    split,
    with_node,
)
from pointsman.supernet.transforming.cells import (
    OPERATIONS,
    cell_space,
    tangent_reward,
    transformed,
)
from pointsman.supernet.transforming.compression import (
    MULTIPLIERS,
    CompressionReward,
    shrunk,
)
from pointsman.supernet.transforming.policy_search import (
    AutoregressivePolicy,
    LayerwisePolicy,
    policy_search,
)
from pointsman.supernet.transforming.tree_policy import TreePolicy, path_level_search

__all__ = [
    "MULTIPLIERS",
    "OPERATIONS",
    "AutoregressivePolicy",
    "Branches",
    "CompressionReward",
    "LayerwisePolicy",
    "TreePolicy",
    "cell_space",
    "edited",
    "part_of",
    "path_level_search",
    "policy_search",
    "replace_identity",
    "replicated",
    "shrunk",
    "split",
    "tangent_reward",
    "transformed",
    "with_node",
]
