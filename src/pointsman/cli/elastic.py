"""A plain network as the supernet that `pointsman search` looks through: elastic and fine-tuned."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor, nn

from pointsman.cli.subnets import Parts
from pointsman.errors import InputError
from pointsman.policy_folder import read_policy, weights_digest, write_policy
from pointsman.supernet.making import magnitude, make_elastic
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.training import (
    Batch,
    RandomBatches,
    SandwichPaths,
    cross_entropy,
    train_supernet,
)

KIND, FOLDER = ("pointsman supernet", 1), "supernet"
BATCH, CLIP = 64, 1.0


@dataclass(frozen=True)
class Tuning:
    """How a plain network is fine-tuned.

    Args:
        updates: of the optimiser; 0: subnets are cut out of the network as it is.
        rate: of the optimiser at the start.
        seed: of batches and subnets.
    """

    updates: int
    rate: float
    seed: int


def finetuned(
    model: nn.Module,
    parts: Parts,
    tuning: Tuning,
    facts: dict[str, str],
    out: Path,
    begin: Callable[[], None],
    advance: Callable[[], None],
) -> Supernet:
    """The network with every width and all heads in quarters, from the folder if it is there.

    Each update trains the whole network on the labels, and the smallest subnet and a random one on
    its answers.

    Args:
        model: with weights of the user's; stays as it is.
        parts: of the data.
        tuning: how.
        facts: about the data, by digests.
        out: folder of the results; the weights are kept in it.
        begin: called before the training.
        advance: called after each update.

    Raises:
        InputError: nothing in the network can be made elastic or trained, or the folder has one of
            other data, weights or training.
        PolicyError: what is in the folder is damaged.
    """
    example = parts.inputs["train"][:2]
    supernet = make_elastic(model, example, importance=magnitude)
    made_from = {**facts, "network": weights_digest(model)[:16], **asdict(tuning)}
    if (out / FOLDER).exists():
        body, weights = read_policy(out / FOLDER, KIND, "delete it, or choose another --out")
        if body != made_from:
            changed = ", ".join(name for name in made_from if body.get(name) != made_from[name])
            raise InputError(
                f"{out / FOLDER} was fine-tuned with another {changed}: choose another --out"
            )
        supernet.load_state_dict(load(weights))
        return supernet
    if tuning.updates:
        begin()
        train_supernet(
            supernet,
            _Counted(parts, tuning.seed, advance),
            SandwichPaths(supernet.space, between=1, seed=tuning.seed),
            updates=tuning.updates,
            loss=_text_loss if parts.kind == "text" else cross_entropy,
            rate=tuning.rate,
            clip=CLIP,
            distil=True,
        )
    write_policy(out / FOLDER, made_from, supernet.state_dict(), KIND)
    return supernet


class _Counted(RandomBatches):
    """Batches of the training part that say when an update is done."""

    def __init__(self, parts: Parts, seed: int, advance: Callable[[], None]) -> None:
        x, y = parts.inputs["train"], parts.targets["train"]
        super().__init__(x, y, size=min(BATCH, len(x)), seed=seed)
        self.advance = advance

    def learn(self, batch: Batch, outputs: Any) -> None:
        self.advance()


def _text_loss(logits: Tensor, y: Tensor) -> Tensor:
    """(N, L, C) logits and (N, L) bytes to (N, L) losses."""
    return cross_entropy(logits.transpose(1, 2), y)
