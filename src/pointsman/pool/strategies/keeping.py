"""How a strategy keeps the parts it is made of: the class by name, and the part's own state.

Only classes that the package exports at the place where the part belongs can come back, so a file
cannot name anything else.
"""

from types import ModuleType
from typing import Any

import numpy.typing as npt

from pointsman.errors import PolicyError
from pointsman.pool.saving import Arrays, Plain


def part_state(part: Any) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """The state of a part, with the name of its class.

    Raises:
        PolicyError: it cannot be kept.
    """
    if not hasattr(part, "to_state"):
        raise PolicyError(
            f"{type(part).__name__} has no to_state, so a policy with it cannot be saved: use a "
            "part that can"
        )
    plain, arrays = part.to_state()
    return {"class": type(part).__name__, "state": plain}, arrays


def part_back(home: ModuleType, plain: Plain, arrays: Arrays) -> Any:
    """The part again, of a class that `home` exports.

    Raises:
        PolicyError: it exports no class of that name that can be brought back.
    """
    name = plain["class"]
    kind = getattr(home, name) if name in getattr(home, "__all__", ()) else None
    if not isinstance(kind, type) or not hasattr(kind, "from_state"):
        raise PolicyError(
            f"{home.__name__} has no part {name!r}: the policy was made by another version, fit it "
            "again"
        )
    return kind.from_state(plain["state"], arrays)
