"""The main job: data in, every way tried, one chart, one certified pick.

split → train the ladder → choose the reference → train the ways → choose settings and their
order on validation → certify on calibration → measure on test → results
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsman import __version__
from pointsman.compare import results as written
from pointsman.compare.data import Dataset, Part, split
from pointsman.compare.networks import nested, skips
from pointsman.compare.networks.build import (
    Spec,
    build,
    channels_last,
    loss_of,
    stages_of,
    training_flops,
)
from pointsman.compare.networks.task import Task, task_for
from pointsman.compare.policy import Policy
from pointsman.compare.prepare import Preparation
from pointsman.compare.progress import Progress, Silent
from pointsman.compare.request import UNITS, Request
from pointsman.compare.state import State
from pointsman.compare.training import Trained, fit
from pointsman.compare.ways import (
    TITLES,
    Answers,
    Setting,
    Way,
    answer_all,
    stage_costs,
    testing_order,
)
from pointsman.cost import Cost, compare_latency
from pointsman.depth.layers.network import SkipNetwork
from pointsman.frontier import Frontier, Outcomes, Pick, Point, certify, oracle
from pointsman.run import subset_thresholds
from pointsman.supernet.supernet import Supernet

MOST_EPOCHS = 3  # times the passes over the data that the ladder's largest member makes
LATENCY_BATCH = 64
MEASURED_ROWS = 1024
STEP_FLOPS = 5e7  # FLOPs that would take as long as a training step takes beside its products


@dataclass(frozen=True)
class Job:
    """One network to train."""

    name: str
    way: str
    spec: Spec
    epochs: int
    flops: float  # of one epoch's forward and backward passes
    steps: int  # of one epoch

    @property
    def work(self) -> float:
        """What one epoch counts for in the progress: small networks take time beside FLOPs."""
        return self.flops + STEP_FLOPS * self.steps


@dataclass(frozen=True, eq=False)
class Bench:
    """The parts of the data, ready for networks."""

    parts: dict[str, Part]
    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    preparation: Preparation

    @classmethod
    def of(cls, data: Dataset, seed: int) -> "Bench":
        """Split the data and fit the preparation on its training part."""
        parts = split(data, seed)
        preparation = Preparation.fit(data.kind, parts["train"].x)
        return cls(
            parts,
            {name: preparation.inputs(part.x) for name, part in parts.items()},
            {name: preparation.targets(part) for name, part in parts.items()},
            preparation,
        )


def compare(
    data: Dataset,
    request: Request,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Try every way to spend less on a data set; write and give the results.

    Args:
        data: from `pointsman.compare.files.load`.
        request: the options.
        out: folder for results.json, report.html, frontier.png and .svg, and policy/.
        resume: continue a run that was cut off.
        progress: told what is being done.

    Raises:
        InputError: data or options that cannot be used, or a folder that cannot.
    """
    request = request.check(data.kind)
    start, watch = time.monotonic(), progress or Silent()
    with State(out).claimed() as state:
        if not state.begun():
            written.refuse_foreign(out)
        bench = Bench.of(data, request.seed)
        state.begin(_identity(data, request), resume=resume)
        task = task_for(data, len(bench.parts["train"]))
        with _threads(task.threads or os.cpu_count() or 1):
            comparison = _Comparison(data, request, bench, task, state, watch)
            found, policy = comparison.run()
        found["made_by"]["seconds"] = round(time.monotonic() - start, 1)
        written.write(found, policy, out)
        state.finish()
    return found


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch on so many threads meanwhile: their number belongs to the caller."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _identity(data: Dataset, request: Request) -> dict[str, Any]:
    return {
        "pointsman": __version__,
        "data": data.fingerprint(),
        "max_drop": request.max_drop,
        "confidence": request.confidence,
        "cost": request.cost,
        "ways": list(request.ways),
        "seed": request.seed,
        "command": request.command,
    }


class _Comparison:
    """One run over one data set: what its steps share."""

    def __init__(
        self,
        data: Dataset,
        request: Request,
        bench: Bench,
        task: Task,
        state: State,
        progress: Progress,
    ) -> None:
        self.data, self.request, self.bench, self.task = data, request, bench, task
        self.state, self.progress = state, progress
        self.unit = UNITS[request.cost]
        self.jobs = self._plan()
        self.specs: dict[str, Spec] = {job.name: job.spec for job in self.jobs}
        self.trained: dict[str, Trained] = {}

    def run(self) -> tuple[dict[str, Any], Policy]:
        """Every step, in order."""
        self.progress.plan(sum(job.epochs * job.work for job in self.jobs))
        for job in self.jobs:
            self.trained[job.name] = self._train(job)
        self.progress.begin("measuring")
        ways, networks = self._ways()
        answers = {
            way.name: {
                part: self._answers(way, part) for part in ("validation", "calibration", "test")
            }
            for way in ways
        }
        best = self._reference(answers["dense"]["validation"])
        ways = [way.with_settings(answers[way.name]["validation"]) for way in ways]
        cost = float(ways[0].costs.alone(best))
        outcomes = {
            part: {
                way.name: way.outcomes(
                    answers[way.name][part], _reference_quality(answers, part, best), cost
                )
                for way in ways
            }
            for part in ("validation", "calibration", "test")
        }
        order = testing_order(Outcomes.join(list(outcomes["validation"].values())))
        pick = certify(
            Outcomes.join(list(outcomes["calibration"].values())),
            self.request.max_drop,
            self.request.confidence,
            order,
        )
        policy = self._policy(pick, ways, networks)
        found = self._results(ways, outcomes["test"], answers, best, pick, policy)
        return found, policy

    # ── training ────────────────────────────────────────────────────────────────────────────────

    def _plan(self) -> list[Job]:
        """The ladder, and one network for each way: all with the training FLOPs of the ladder's
        largest member, as far as MOST_EPOCHS allows, so that no line on the chart is better trained
        than another.
        """
        rows, epochs = len(self.bench.parts["train"]), self.task.epochs
        named = [("ladder", spec["name"], spec) for spec in self.task.ladder]
        named += [
            (way, way, spec) for way, spec in self.task.networks.items() if way in self.request.ways
        ]
        flops = [training_flops(spec) * rows for _, _, spec in named]
        budget = max(flops[: len(self.task.ladder)]) * epochs
        steps = max(1, rows // self.task.recipe.batch)
        return [
            Job(name, way, spec, min(MOST_EPOCHS * epochs, max(1, round(budget / one))), one, steps)
            for (way, name, spec), one in zip(named, flops, strict=True)
        ]

    def _train(self, job: Job) -> Trained:
        self.progress.begin(f"training {job.name}")
        done = 0

        def on_epoch(epoch: int, _: float) -> None:
            nonlocal done
            self.progress.advance((epoch - done) * job.work)
            done = epoch

        x, y = self.bench.inputs["train"], self.bench.targets["train"]
        held = None
        if job.spec["form"] == "skips":
            rows, kept = skips.held_back(len(x), self.request.seed)
            held, x, y = (x[kept], y[kept]), x[rows], y[rows]
        trained = fit(
            lambda: channels_last(build(job.spec)),
            partial(loss_of, job.spec),
            x,
            y,
            self.task.recipe,
            name=job.name,
            epochs=job.epochs,
            seed=self.request.seed,
            checkpoint=self.state.checkpoint(job.name),
            on_epoch=on_epoch,
        )
        self.progress.advance((job.epochs - done) * job.work)
        kind, seed = self.data.kind, self.request.seed
        if isinstance(trained.module, SkipNetwork) and held:
            skips.learn_routers(trained.module, *held, kind=kind, seed=seed)
        if isinstance(trained.module, Supernet):
            judged = self.bench.inputs["validation"], self.bench.targets["validation"]
            subnets = nested.choose(trained.module, *judged, x, kind=kind, seed=seed)
            module, self.specs[job.name] = nested.chosen(trained.module, subnets, job.spec, x)
            return replace(trained, module=channels_last(module))
        return trained

    # ── ways ────────────────────────────────────────────────────────────────────────────────────

    def _ways(self) -> tuple[list[Way], dict[str, list[str]]]:
        """Every way as a row of stages, and the networks that each is made of."""
        ladder = [job.name for job in self.jobs if job.way == "ladder"]
        dense = self._way("dense", ladder)
        ways, networks = [dense], {"dense": ladder}
        for name in self.request.ways:
            networks[name] = ladder if name == "cascade" else [name]
            ways.append(replace(dense, name=name) if name == "cascade" else self._way(name, [name]))
        return ways, networks

    def _way(self, name: str, networks: Sequence[str]) -> Way:
        named = [
            pair
            for network in networks
            for pair in stages_of(self.specs[network], self.trained[network].module)
        ]
        stages = tuple(stage for _, stage in named)
        example = self.bench.inputs["train"][:LATENCY_BATCH]
        return Way(
            name,
            tuple(stage_name for stage_name, _ in named),
            stages,
            stage_costs(stages, example, self.unit),
        )

    def _answers(self, way: Way, part: str) -> Answers:
        return answer_all(
            way.stages, self.bench.inputs[part], self.bench.targets[part], self.data.kind
        )

    def _reference(self, validation: Answers) -> int:
        """The best member of the ladder on validation; of equals, the one of lower loss."""
        quality = validation.quality.double().mean(dim=1).tolist()
        loss = validation.loss.double().mean(dim=1).tolist()
        return min(range(len(quality)), key=lambda at: (-quality[at], loss[at]))

    # ── results ─────────────────────────────────────────────────────────────────────────────────

    def _policy(self, pick: Pick, ways: Sequence[Way], networks: dict[str, list[str]]) -> Policy:
        name, knob = str(pick.knob).split(": ", 1)
        way = next(way for way in ways if way.name == name)
        setting = way.settings[knob]
        thresholds = setting.thresholds
        names, keep = networks[name], list(range(len(way.stages)))
        if len(names) > 1:  # of a ladder, only the members that this setting asks
            keep = [at for at in keep if thresholds[at] < float("inf")]
            names = [names[at] for at in keep]
        advance, answer = (
            Cost(np.asarray(cost.amount)[keep], self.unit)
            for cost in (way.costs.advance, way.costs.answer)
        )
        return Policy(
            way=name,
            knob=knob,
            thresholds=tuple(thresholds[at] for at in keep),
            rule=setting.rule,
            stage_names=tuple(way.stage_names[at] for at in keep),
            costs=replace(way.costs, advance=advance, answer=answer),
            specs={name: self.specs[name] for name in names},
            modules={name: self.trained[name].module for name in names},
            preparation=self.bench.preparation,
            data={
                "name": self.data.name,
                "kind": self.data.kind,
                "shape": list(self.data.example_shape()),
                "columns": list(self.data.columns),
                "classes": list(self.data.classes),
                **({"target": t} if (t := self.data.source.get("target")) else {}),
            },
            certificate=pick.certificate.to_dict(),
        )

    def _results(
        self,
        ways: Sequence[Way],
        test: dict[str, Outcomes],
        answers: dict[str, dict[str, Answers]],
        best: int,
        pick: Pick,
        policy: Policy,
    ) -> dict[str, Any]:
        dense = ways[0]
        ladder = [
            Point(name, float(answers["dense"]["test"].quality[at].double().mean()), cost)
            for at, name in enumerate(dense.stage_names)
            for cost in [float(dense.costs.alone(at))]
        ]
        validation = answers["dense"]["validation"].quality.double().mean(dim=1).tolist()
        validated = [
            Point(point.knob, quality, point.cost)
            for point, quality in zip(ladder, validation, strict=True)
        ]
        corners = Frontier("ladder", tuple(validated), self.unit).hull().points
        hindsight = replace(
            dense,
            settings={
                name: Setting(subset_thresholds([at], [], len(ladder)))
                for at, name in enumerate(dense.stage_names)
            },
        ).outcomes(answers["dense"]["test"], test["dense"].reference_quality, ladder[best].cost)
        return written.assemble(
            data={
                "name": self.data.name,
                "kind": self.data.kind,
                "inputs": {name: len(part) for name, part in self.bench.parts.items()},
                "classes": list(self.data.classes),
                "note": self.data.note,
            },
            request=self.request,
            metric=self.task.metric,
            unit=self.unit,
            ladder=ladder,
            reference=ladder[best],
            fronts=[Frontier.from_outcomes(TITLES[way.name], test[way.name]) for way in ways],
            ways=[way.name for way in ways],
            random=[p for p in ladder if p.knob in {corner.knob for corner in corners}],
            oracle=oracle(hindsight),
            pick=pick,
            used=self._used(pick, policy, best),
            trained=[
                {
                    "name": job.name,
                    "way": job.way,
                    "parameters": sum(
                        p.numel() for p in self.trained[job.name].module.parameters()
                    ),
                    "epochs": job.epochs,
                    "tflops": job.epochs * job.flops / 1e12,
                    "seconds": round(self.trained[job.name].seconds, 2),
                }
                for job in self.jobs
            ],
        )

    def _used(self, pick: Pick, policy: Policy, best: int) -> dict[str, Any]:
        """The pick run for real on test inputs: who answered, the time it took, known routes."""
        name = self.task.ladder[best]["name"]
        reference = self.trained[name].module
        rows = self.bench.parts["test"].x[:MEASURED_ROWS]
        stage = policy.predict(self.bench.parts["test"].x).stage
        shares = np.bincount(stage, minlength=len(policy.stage_names)) / len(stage)
        times = compare_latency(
            {
                "pick": lambda: policy.predict(rows),
                "reference": lambda: _run(reference, self.bench.preparation.inputs(rows)),
            },
            warmup=1,
            repeats=5,
        )
        used: dict[str, Any] = {
            "shares": {
                name: round(float(share), 4)
                for name, share in zip(policy.stage_names, shares, strict=True)
                if share > 0
            },
            "measured_ms": float(times["pick"].median) / len(rows),
            "reference_ms": float(times["reference"].median) / len(rows),
        }
        group = self.bench.parts["test"].group
        if group is not None:
            used["sent_on"] = {
                "easy": float((stage[group == 0] > 0).mean()),
                "hard": float((stage[group == 1] > 0).mean()),
            }
        return used


def _reference_quality(answers: dict[str, dict[str, Answers]], part: str, best: int) -> Any:
    return answers["dense"][part].quality[best].double().numpy()


def _run(module: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        for batch in torch.split(inputs, 1024):
            module(batch)
