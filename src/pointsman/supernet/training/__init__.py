"""How a supernet is trained: one loop, with what is drawn at each update as parts.

    train_supernet(supernet, RandomBatches(x, y), UniformPaths(supernet.space), updates=1000)

Paths: `UniformPaths`, `FairPaths`, `SandwichPaths`, `SortedPaths`, `ImportancePaths`, `LevelPaths`,
`BalancedPaths`. Batches: `RandomBatches`, `LoaderBatches`, `ImportanceBatches`. Several sets of
weights: `several_weights`, `split_weights` where `best_split` says, `WeightExperts`. Afterwards
`InheritedQuality` judges a path for any search, such as `path_evolution`.
"""

from pointsman.supernet.training.balanced import BalancedPaths
from pointsman.supernet.training.batches import Batch, Batches, LoaderBatches, RandomBatches
from pointsman.supernet.training.elastic_finetuning import finetune_elastic
from pointsman.supernet.training.importance import ImportanceBatches, ImportancePaths
from pointsman.supernet.training.inherited import InheritedQuality, ranking, share_right
from pointsman.supernet.training.levels import LevelPaths
from pointsman.supernet.training.loop import cross_entropy, soft_cross_entropy, train_supernet
from pointsman.supernet.training.path_evolution import path_evolution
from pointsman.supernet.training.paths import (
    FairPaths,
    Path,
    Paths,
    SandwichPaths,
    SortedPaths,
    UniformPaths,
)
from pointsman.supernet.training.splitting import Split, best_split, disagreement, largest_cut
from pointsman.supernet.training.weight_experts import WeightExperts
from pointsman.supernet.training.weight_sets import SplitWeights, several_weights, split_weights

__all__ = [
    "BalancedPaths",
    "Batch",
    "Batches",
    "FairPaths",
    "ImportanceBatches",
    "ImportancePaths",
    "InheritedQuality",
    "LevelPaths",
    "LoaderBatches",
    "Path",
    "Paths",
    "RandomBatches",
    "SandwichPaths",
    "SortedPaths",
    "Split",
    "SplitWeights",
    "UniformPaths",
    "WeightExperts",
    "best_split",
    "cross_entropy",
    "disagreement",
    "finetune_elastic",
    "largest_cut",
    "path_evolution",
    "ranking",
    "several_weights",
    "share_right",
    "soft_cross_entropy",
    "split_weights",
    "train_supernet",
]
