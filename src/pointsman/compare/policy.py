"""A saved policy: a JSON description and safetensors weights, from which it answers again.

Loading runs no code from the file and believes nothing that its digests do not confirm.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from pointsman.compare.data import Array
from pointsman.compare.networks.build import Spec, build, channels_last, stages_of
from pointsman.compare.prepare import Preparation
from pointsman.compare.rules import USUAL, rules_for
from pointsman.compare.ways import Spending
from pointsman.cost import Cost
from pointsman.errors import InputError, PolicyError
from pointsman.policy_folder import read_policy, write_policy
from pointsman.run import Stage, StageCosts, StoppingRule, run_staged

KIND = ("pointsman-policy", 2)
ROWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Predictions:
    """For each input: class index (for text, a byte), its probability, who answered, the cost.

    The cost is that of the results: per input, for text per token of the window.
    """

    classes: Array
    confidence: Array
    stage: Array
    cost: Cost


@dataclass(frozen=True, eq=False)
class Policy:
    """Something fitted that routes: stages, the thresholds of one setting, what each stage costs.

    Attributes:
        way: "cascade", ...
        knob: the setting.
        thresholds: (S,) of that setting.
        rule: the stopping rule that they are held against.
        stage_names: S names.
        costs: per stage and input.
        specs: the networks, by name; their stages, in this order, are the policy's.
        modules: the same networks, built and in evaluation mode.
        preparation: of raw inputs.
        data: what inputs it takes: name, kind, shape, columns, classes.
        certificate: as in the results.
    """

    way: str
    knob: str
    thresholds: tuple[float, ...]
    rule: str
    stage_names: tuple[str, ...]
    costs: StageCosts
    specs: Mapping[str, Spec]
    modules: Mapping[str, nn.Module]
    preparation: Preparation
    data: Mapping[str, Any]
    certificate: Mapping[str, Any]

    def stages(self) -> list[Stage]:
        """The S stages, ready to run."""
        return [
            stage
            for name, spec in self.specs.items()
            for _, stage in stages_of(spec, self.modules[name])
        ]

    def predict(self, x: Array) -> Predictions:
        """Answer raw inputs of the shape that the policy was fitted on; text, with the byte after.

        Raises:
            InputError: inputs of another shape or kind.
        """
        shape = tuple(self.data["shape"])
        if tuple(x.shape[1:]) != shape:
            raise InputError(
                f"this policy takes {self.data['kind']} of shape (n, "
                f"{', '.join(map(str, shape))}), got {tuple(x.shape)}"
            )
        stages, unit, parts = self.stages(), self.costs.advance.unit, []
        rule = rules_for(self.data["kind"])[self.rule]
        with torch.no_grad():
            for start in range(0, max(len(x), 1), ROWS_AT_ONCE):
                inputs = self.preparation.inputs(x[start : start + ROWS_AT_ONCE])
                logits, stage, cost = self._answer(stages, inputs, rule)
                logits = logits if logits.ndim == 2 else logits[:, -1]
                best = torch.softmax(logits, dim=1).max(dim=1)
                parts.append((best.indices, best.values, stage, cost))
        columns = [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
        return Predictions(columns[0], columns[1], columns[2], Cost(columns[3], unit))

    def _answer(
        self, stages: list[Stage], inputs: Tensor, rule: StoppingRule
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, who answered, and what it cost, of a batch."""
        alone = next(at for at, limit in enumerate(self.thresholds) if limit < math.inf)
        answer = stages[alone].answer
        if isinstance(answer, Spending) and self.costs.advance.unit == "MFLOPs":
            logits, spent = answer.spend(inputs)
            return logits, torch.full((len(inputs),), alone), spent
        found = run_staged(stages, inputs, self.thresholds, rule)
        cost = found.route.cost(self.costs.per_stage(self.thresholds)).amount
        return found.output, found.stage, torch.as_tensor(cost)

    def save(self, folder: Path) -> None:
        """Write the policy; one that is there already is replaced once the new one is whole."""
        body = {
            "made_for": dict(self.data),
            "way": self.way,
            "knob": self.knob,
            "thresholds": [_plain(value) for value in self.thresholds],
            "rule": self.rule,
            "stages": list(self.stage_names),
            "costs": {
                "unit": self.costs.advance.unit,
                "advance": np.asarray(self.costs.advance.amount).tolist(),
                "answer": np.asarray(self.costs.answer.amount).tolist(),
            },
            "networks": [{"id": name, **spec} for name, spec in self.specs.items()],
            "certificate": dict(self.certificate),
        }
        write_policy(folder, body, self._tensors(), KIND)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"preparation.mean": self.preparation.mean}
        tensors["preparation.scale"] = self.preparation.scale
        for name, module in self.modules.items():
            for key, value in module.state_dict().items():
                tensors[f"{name}.{key}"] = value
        return tensors


def load_policy(folder: str | os.PathLike[str]) -> Policy:
    """Read a saved policy from its folder.

    Raises:
        PolicyError: it is not there, not whole, changed since it was written, or of a newer
            version.
    """
    folder = Path(folder)
    body, weights = read_policy(folder, KIND, "run compare again")
    try:
        return _restore(body, weights)
    except Exception as error:  # what another program wrote can fail in a dozen ways
        raise PolicyError(
            f"{folder}: the description and the weights do not belong together "
            f"({type(error).__name__}): run compare again"
        ) from error


def _restore(body: Mapping[str, Any], weights: bytes) -> Policy:
    tensors = load_tensors(weights)
    specs, modules = {}, {}
    for entry in body["networks"]:
        name = entry["id"]
        specs[name] = {key: value for key, value in entry.items() if key != "id"}
        with torch.device("meta"):  # shapes only: a description alone takes no memory
            module = build(specs[name])
        prefix = f"{name}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        module.load_state_dict(own, assign=True)
        modules[name] = channels_last(module).eval()
    costs, unit = body["costs"], body["costs"]["unit"]
    policy = Policy(
        way=body["way"],
        knob=body["knob"],
        thresholds=tuple(float(value) for value in body["thresholds"]),
        rule=body.get("rule", USUAL),  # version 1 had no other
        stage_names=tuple(body["stages"]),
        costs=StageCosts(
            Cost(np.array(costs["advance"]), unit), Cost(np.array(costs["answer"]), unit)
        ),
        specs=specs,
        modules=modules,
        preparation=Preparation(
            body["made_for"]["kind"], tensors["preparation.mean"], tensors["preparation.scale"]
        ),
        data=body["made_for"],
        certificate=body["certificate"],
    )
    if policy.rule not in rules_for(policy.data["kind"]):
        raise PolicyError(f"no stopping rule is known by the name {policy.rule!r}")
    counts = {len(policy.stages()), len(policy.stage_names)}
    counts |= {len(policy.thresholds), len(policy.costs)}
    if len(counts) > 1:
        raise PolicyError(f"stages, thresholds and costs differ in number: {sorted(counts)}")
    return policy


def _plain(value: float) -> float | str:
    """JSON has no infinity: thresholds of skipped and of answering stages are written as text."""
    return value if math.isfinite(value) else str(value)
