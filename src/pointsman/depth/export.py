"""Exit networks as files: every segment and every head a program of `torch.export`, and a JSON
description that says how they go together.

    folder/exits.json                  what the folder holds
    folder/advance_0.pt2, ...          from one exit to the next; the first from the input
    folder/answer_0.pt2, ...           from the state at an exit to its logits

What hangs on the input, who leaves and who goes on, is no part of any program: `run_staged` does it
between them, here as in the network itself. Inside of a segment the steps must be the same for
every input; where they are not, `export_exits` says which segment and why. The number of inputs is
free, their other sizes are those of the example.

Legend: n inputs, S exits.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pointsman.depth.early_exit import EarlyExit
from pointsman.depth.trunks.rows import (
    blank_row,
    checked_batch,
    count_rows,
    several_rows,
    take_rows,
)
from pointsman.errors import InputError, PolicyError, reason
from pointsman.modules import evaluating
from pointsman.run import (
    Answer,
    Confidence,
    Stage,
    State,
    StoppingRule,
    Thresholds,
    run_staged,
)
from pointsman.select import max_probability

DESCRIPTION = "exits.json"
VERSION = 1
MOST_ROWS = 1 << 20
TRIAL_ROWS = 3  # more than one, so that nothing takes the number of inputs for a constant


class ExportedExits:
    """An exit network from files; needs torch, and none of the network's code.

    Made by `load_exits`.

    Attributes:
        exits: names of the S exits.
        num_classes: of every answer.
    """

    def __init__(
        self,
        exits: tuple[str, ...],
        num_classes: int,
        programs: list[tuple[Callable[..., Any], Callable[..., Any]]],
    ) -> None:
        self.exits, self.num_classes, self._programs = exits, num_classes, programs

    def stages(self) -> list[Stage]:
        """The network as S stages for `run_staged`."""
        return [
            Stage(answer=_for_any_rows(answer), advance=_for_any_rows(advance))
            for advance, answer in self._programs
        ]

    def run(
        self,
        x: Any,
        thresholds: Thresholds,
        confidence: Confidence | StoppingRule = max_probability,
    ) -> Answer:
        """As `EarlyExit.run`.

        Raises:
            InputError: inputs of other sizes than those of the example at export.
        """
        with torch.no_grad():
            return run_staged(self.stages(), x, thresholds, confidence)


def export_exits(net: EarlyExit, example: Any, folder: str | Path) -> ExportedExits:
    """Write a network into a folder, and load it from there.

    Args:
        net: in evaluation mode meanwhile; left as it was.
        example: a batch of at least one input, of the sizes that inputs will have.
        folder: made if it is not there; files of an earlier export are replaced.

    Raises:
        InputError: a segment or a head that torch cannot export, with its name and torch's reason.
    """
    checked_batch(example)
    into = Path(folder)
    into.mkdir(parents=True, exist_ok=True)
    state = several_rows(example, TRIAL_ROWS)
    stages = []
    with evaluating(net), torch.no_grad():
        for at, (name, stage) in enumerate(zip(net.exits, net.stages(), strict=True)):
            files = {"advance": f"advance_{at}.pt2", "answer": f"answer_{at}.pt2"}
            assert stage.advance is not None
            program = _exported(stage.advance, state, f"the segment up to {name!r}")
            torch.export.save(program, into / files["advance"])
            # what follows is made for what this program gives, not for what the network gave
            state = program.module()(state)
            program = _exported(stage.answer, state, f"the answer at {name!r}")
            torch.export.save(program, into / files["answer"])
            stages.append({"exit": name, **files})
    description = {
        "format": "pointsman exits",
        "version": VERSION,
        "torch": torch.__version__,
        "num_classes": net.num_classes,
        "stages": stages,
    }
    (into / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return load_exits(into)


def load_exits(folder: str | Path) -> ExportedExits:
    """Read what `export_exits` wrote. Load only folders that you trust: programs are code.

    Raises:
        PolicyError: no such folder, a file that is missing or damaged, or a newer version.
    """
    source = Path(folder)
    try:
        description = json.loads((source / DESCRIPTION).read_text(encoding="utf-8"))
        version = description["version"]
        if description["format"] != "pointsman exits" or version > VERSION:
            raise PolicyError(
                f"{source} holds {description['format']!r} of version {version}, this version of "
                f"pointsman reads 'pointsman exits' up to {VERSION}"
            )
        stages = description["stages"]
        names = tuple(str(stage["exit"]) for stage in stages)
        programs = [
            (_loaded(source / stage["advance"]), _loaded(source / stage["answer"]))
            for stage in stages
        ]
        return ExportedExits(names, int(description["num_classes"]), programs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(
            f"{source} holds no exported exit network that can be read ({reason(error)}): export "
            "it again"
        ) from error


class _Part(nn.Module):
    """A function as a module; what it uses is found while exporting, and nothing else is kept."""

    def __init__(self, function: Callable[[State], State]) -> None:
        super().__init__()
        self._function = (function,)

    def forward(self, state: State) -> State:
        return self._function[0](state)


def _exported(function: Callable[[State], State], state: State, what: str) -> Any:
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    free = tree_map(lambda leaf: {0: rows} if isinstance(leaf, Tensor) else None, state)
    try:
        return torch.export.export(
            _Part(function).eval(), (state,), dynamic_shapes=(free,), strict=False
        )
    except Exception as error:
        words = reason(error).partition(" The error above occurred")[0]
        raise InputError(
            f"{what} cannot be exported, because its steps are not the same for every input "
            f"({words[:300]}): put what decides between segments, or export without this exit"
        ) from error


def _loaded(file: Path) -> Callable[..., Any]:
    if not file.is_file():
        raise PolicyError(f"{file} is missing: export the network again")
    try:
        program: Callable[..., Any] = torch.export.load(file).module()
    except Exception as error:
        raise PolicyError(f"{file} is damaged ({reason(error)}): export it again") from error
    return program


def _for_any_rows(program: Callable[[State], State]) -> Callable[[State], State]:
    """A program that also takes no input at all, and says what does not fit."""

    def run(state: State) -> State:
        if count_rows(state) == 0:
            return take_rows(run(blank_row(state)), slice(0, 0))
        try:
            return program(state)
        except AssertionError as error:
            raise InputError(
                f"the network was exported for inputs of other sizes ({reason(error)}): give "
                "inputs of that size, or export it with an example of this one"
            ) from error

    return run
