"""A network with exits that was given its thresholds: it answers, and is saved with its promise.

    policy = certified_exits(net, x, y, max_drop=0.01)       # see depth.budget
    policy.predict(x_new)
    policy.save("policy")
    ExitPolicy.load("policy", build_network())

Legend: T inputs, S exits, C classes.
"""

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from pointsman.cost import Cost
from pointsman.depth.early_exit import EarlyExit
from pointsman.depth.stopping.keeping import rule_back, rule_state
from pointsman.depth.trunks.rows import count_rows, take_rows
from pointsman.errors import InputError, PointsmanError, PolicyError
from pointsman.frontier import Certificate, Pick
from pointsman.policy_folder import read_policy, weights_digest, write_policy
from pointsman.run import Answer, Confidence, StageCosts, StoppingRule, stage_thresholds

KIND = ("pointsman-exit-policy", 1)
ROWS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class ExitPolicy:
    """Exits, a rule that says when to leave, a threshold for each exit, and what is promised.

    Args:
        net: whose exits answer.
        rule: a confidence or a stopping rule.
        thresholds: (S,), +inf at exits that are left out; see `run_staged`.
        costs: of each exit, per input.
        pick: the setting's means on the calibration inputs, and its certificate.

    Raises:
        InputError: another number of thresholds or costs than exits, or NaN among them.
    """

    net: EarlyExit
    rule: Confidence | StoppingRule
    thresholds: tuple[float, ...]
    costs: StageCosts
    pick: Pick

    def __post_init__(self) -> None:
        exits = len(self.net.exits)
        if len(self.thresholds) != exits or len(self.costs) != exits:
            raise InputError(
                f"{exits} exits need a threshold and a cost each, got {len(self.thresholds)} and "
                f"{len(self.costs)}"
            )
        stage_thresholds(self.thresholds, exits)

    @property
    def certificate(self) -> Certificate:
        """What is promised."""
        return self.pick.certificate

    def run(self, x: Any) -> Answer:
        """Logits (T, ..., C) and the route over the exits; see `EarlyExit.run`."""
        return self.net.run(x, self.thresholds, self.rule)

    def predict(self, x: Any) -> Tensor:
        """The classes (T,), or (T, ...) where an input has several places; a few rows at a time."""
        starts = range(0, max(count_rows(x), 1), ROWS_AT_ONCE)
        parts = [self.run(take_rows(x, slice(at, at + ROWS_AT_ONCE))) for at in starts]
        return torch.cat([part.output.argmax(dim=-1) for part in parts])

    def cost(self, answer: Answer) -> Cost:
        """What each input of an answer has spent, amount (T,): heads that were not sure, too."""
        return answer.route.cost(self.costs.per_stage(self.thresholds))

    def words(self) -> str:
        """The exits in use, what they save, and the promise, in a few sentences."""
        used = [
            f"{name} at {threshold:.4g}"
            for name, threshold in zip(self.net.exits[:-1], self.thresholds, strict=False)
            if threshold < math.inf
        ]
        where = f"Leaves early after {', '.join(used)}" if used else "Nobody leaves early"
        spent = f"{self.pick.cost:.4g} {self.costs.advance.unit} per input"
        saved = f"{self.pick.saved:.0%} saved against the reference"
        return f"{where}; {spent}, {saved}. {self.certificate.words()}"

    def save(self, folder: str | os.PathLike[str], *, weights: bool = True) -> None:
        """Write policy.json and weights.safetensors; what is there is replaced.

        Args:
            folder: to write to.
            weights: False leaves the network's weights out and keeps a digest of them: `load` then
                takes the network only with the same weights.

        Raises:
            PolicyError: a rule of one's own that cannot be kept, or a folder that cannot be
                written.
        """
        plain, tensors = rule_state(self.rule)
        kept = {f"rule.{name}": tensor for name, tensor in tensors.items()}
        if weights:
            kept |= {f"network.{name}": t for name, t in self.net.state_dict().items()}
        body = {
            "exits": list(self.net.exits),
            "classes": self.net.num_classes,
            "rule": plain,
            "thresholds": [_plain(threshold) for threshold in self.thresholds],
            "costs": {
                "unit": self.costs.advance.unit,
                "advance": np.asarray(self.costs.advance.amount).tolist(),
                "answer": np.asarray(self.costs.answer.amount).tolist(),
            },
            "pick": {**asdict(self.pick), "certificate": self.certificate.to_dict()},
            "weights": None if weights else weights_digest(self.net),
        }
        try:
            write_policy(Path(folder), body, kept, KIND)
        except OSError as error:
            why = error.strerror
            raise PolicyError(f"{folder}: the policy cannot be written ({why})") from error

    @classmethod
    def load(cls, folder: str | os.PathLike[str], net: EarlyExit) -> Self:
        """Read a policy, for a network that was built again.

        Args:
            folder: that `save` wrote.
            net: with the same exits. Where the weights were saved they are loaded into it; nothing
                is changed where anything does not fit.

        Raises:
            PolicyError: damaged, changed or of another kind; or saved of another network.
        """
        body, weights = read_policy(Path(folder), KIND, "save it again")
        try:
            return cls._restored(body, load_tensors(weights), net, str(folder))
        except PolicyError:
            raise
        except Exception as error:  # what another program wrote can fail in a dozen ways
            what = str(error) if isinstance(error, PointsmanError) else type(error).__name__
            raise PolicyError(
                f"{folder}: the parts of the policy do not fit one another ({what}): save it again"
            ) from error

    @classmethod
    def _restored(
        cls, body: dict[str, Any], tensors: dict[str, Tensor], net: EarlyExit, source: str
    ) -> Self:
        if (list(net.exits), net.num_classes) != (body["exits"], body["classes"]):
            raise PolicyError(
                f"{source}: the policy is of a network with exits {', '.join(body['exits'])} and "
                f"{body['classes']} classes, got {', '.join(net.exits)} and {net.num_classes}: "
                "build it as it was"
            )
        unit, pick = body["costs"]["unit"], body["pick"]
        advance, answer = (Cost(np.array(body["costs"][k]), unit) for k in ("advance", "answer"))
        policy = cls(
            net,
            rule_back(body["rule"], _under("rule.", tensors)),
            tuple(float(threshold) for threshold in body["thresholds"]),
            StageCosts(advance, answer),
            Pick(**{**pick, "certificate": Certificate.from_dict(pick["certificate"])}),
        )
        if body["weights"] is None:
            _load_weights(net, _under("network.", tensors), source)
        elif body["weights"] != weights_digest(net):
            raise PolicyError(
                f"{source}: the policy was certified with other weights than this network has: "
                "load those first"
            )
        return policy


def _load_weights(net: EarlyExit, kept: dict[str, Tensor], source: str) -> None:
    own = net.state_dict()
    for name in sorted(own.keys() | kept.keys()):
        mine = tuple(own[name].shape) if name in own else "nothing"
        its = tuple(kept[name].shape) if name in kept else "nothing"
        if mine != its:
            raise PolicyError(
                f"{source}: the weights are of another network, {name} is {its} there and {mine} "
                "here: build it as it was"
            )
    net.load_state_dict(kept)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _plain(value: float) -> float | str:
    """JSON has no infinity: it is written as text."""
    return value if math.isfinite(value) else str(value)
