"""A chosen subnet as a folder of JSON and safetensors, rebuilt by its user's own code.

Only numbers and names are written: reading runs no code from the folder. The network is built and
made elastic again as it was before, and the folder says which of its subnets it holds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from pointsman.errors import PolicyError, reason
from pointsman.policy_folder import read_policy, write_policy
from pointsman.supernet.space import Genotype
from pointsman.supernet.supernet import Supernet

KIND = ("pointsman subnet", 1)
AGAIN = "save the subnet again"


def save_subnet(
    folder: str | Path,
    supernet: Supernet,
    genotype: Genotype,
    *,
    subnet: nn.Module | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a subnet; what is in the folder is replaced once the new one is whole.

    Args:
        folder: to write to.
        supernet: that holds it.
        genotype: which one.
        subnet: what `extract` gave, after it was recalibrated or trained on; None: it is extracted.
        about: further plain JSON values, such as its quality and cost.

    Raises:
        InputError: this is no genotype of the supernet's space.
        OSError: it cannot be written there.
    """
    taken = supernet.space.canonical(genotype)
    module = supernet.extract(taken) if subnet is None else subnet
    body = {
        "space": supernet.space.digest,
        "genotype": list(taken),
        "choices": supernet.space.decode(taken),
        "about": dict(about or {}),
    }
    write_policy(Path(folder), body, module.state_dict(), KIND)


def load_subnet(folder: str | Path, into: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """The subnet of a folder, and what was written about it.

    Args:
        folder: that `save_subnet` wrote.
        into: the supernet, built and made elastic as when it was saved (its weights do not matter
            and stay), or a module of the subnet's own shape, whose weights are replaced.

    Raises:
        PolicyError: a file is missing, damaged or of another kind, the supernet has another space,
            or the module another shape.
    """
    place = Path(folder)
    body, weights = read_policy(place, KIND, AGAIN)
    module = into
    if isinstance(into, Supernet):
        if into.space.digest != body["space"]:
            raise PolicyError(
                f"{place}: the subnet is one of another space than that of this supernet "
                f"({into.space}): declare what is elastic as it was when it was saved"
            )
        module = into.extract(body["genotype"])
    try:
        module.load_state_dict(load(weights))
    except (RuntimeError, SafetensorError) as error:
        raise PolicyError(
            f"{place}: the weights do not fit the module ({reason(error)}): build it as it was "
            "when the subnet was saved"
        ) from error
    return module, body
