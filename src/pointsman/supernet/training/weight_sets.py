"""Several sets of weights behind one space: copies of a network that share its dials.

Where all subnets train one set of weights they disturb each other. A copy for a part of them costs
memory and training, and separates them. Which subnet uses which copy is either a choice of its own
(`several_weights`) or fixed by the options of one choice (`SplitWeights`).
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from pointsman.errors import InputError
from pointsman.supernet.elastic.dial import Dial, dials_of
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.supernet import Supernet

WEIGHTS = "weights"  # the choice of a set


def copies(body: nn.Module, count: int, seed: int | None = None) -> list[nn.Module]:
    """The network and copies of it that hold the same dials.

    Args:
        body: the first of them.
        count: how many in all.
        seed: the weights of the copies are drawn anew from it where a module has
            `reset_parameters`; None: they are those of the network.
    """
    dials = {id(dial): dial for dial in dials_of(body)}
    made = [body, *(copy.deepcopy(body, dict(dials)) for _ in range(count - 1))]
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in (module for each in made[1:] for module in each.modules()):
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
    return made


def several_weights(supernet: Supernet, count: int, seed: int | None = None) -> Supernet:
    """A supernet of several sets of weights, with one more choice before all others: the set.

    Args:
        supernet: becomes the first set.
        count: of sets.
        seed: see `copies`.

    Raises:
        InputError: fewer than one set.
    """
    if count < 1:
        raise InputError(f"a supernet has at least one set of weights, got {count}")
    made = copies(supernet.body, count, seed)
    return Supernet(OneOf(WEIGHTS, {str(at): each for at, each in enumerate(made)}))


class SplitWeights(nn.Module):
    """A network of which one choice decides what set of weights is used.

    Few-shot splitting: Zhao et al. 2020, "Few-shot neural architecture search", arXiv 2006.06863.
    A member may be split again.

    Args:
        members: one for each group, with the same dials.
        dial: of the choice.
        groups: of its options' indices, which together are all of them.

    Raises:
        InputError: not one member a group, or an option that is not in exactly one group.
    """

    def __init__(
        self, members: Sequence[nn.Module], dial: Dial, groups: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        listed = sorted(option for group in groups for option in group)
        if len(members) != len(groups) or listed != list(range(len(dial.choice.options))):
            raise InputError(
                f"every option of {dial.choice.name!r} is in one group and every group has its "
                f"weights, got {len(members)} sets for the groups {[list(g) for g in groups]} of "
                f"{len(dial.choice.options)} options"
            )
        self.dial = dial
        self.members = nn.ModuleList(members)
        self.member_of = {option: at for at, group in enumerate(groups) for option in group}

    def _member(self) -> nn.Module:
        return self.members[self.member_of[self.dial.index]]

    def forward(self, *inputs: object, **options: object) -> object:
        """Of the member whose group has the option in force."""
        return self._member()(*inputs, **options)

    def dials(self) -> tuple[Dial, ...]:
        """The choice that decides."""
        return (self.dial,)

    def plain(self) -> nn.Module:
        """The member in force."""
        return self._member()


def split_weights(supernet: Supernet, choice: str, groups: Sequence[Sequence[int]]) -> Supernet:
    """A supernet whose weights are copied for each group of options of one choice.

    The space stays as it is, but for the order of its choices: the one that is split comes first.

    Args:
        supernet: becomes the first group's.
        choice: name.
        groups: of the indices of its options.

    Raises:
        InputError: no such choice, or groups that do not partition its options.
    """
    dials = {dial.choice.name: dial for dial in supernet.dials}
    if choice not in dials:
        raise InputError(f"the choices are {list(dials)}, got {choice!r}")
    if dials[choice].choice.when is not None:
        raise InputError(
            f"a choice that always matters can be split, {choice!r} depends on another"
        )
    return Supernet(SplitWeights(copies(supernet.body, len(groups)), dials[choice], groups))
