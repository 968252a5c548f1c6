"""How a router is written down: its keywords, what it learned, and its costs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.routers.costs import Costs
from pointsman.pool.saving import Arrays, Plain, inside, nested


def written(
    keywords: Mapping[str, Any], learned: Mapping[str, npt.NDArray[Any]], costs: Costs
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """The state of a router, as `Saved.to_state` gives it."""
    plain, arrays = nested({"costs": costs.to_state()})
    own = {name: np.ascontiguousarray(array) for name, array in learned.items()}
    return {"keywords": dict(keywords), **plain}, {**own, **arrays}


def costs_of(plain: Plain, arrays: Arrays) -> Costs:
    """The costs that `written` kept."""
    return Costs.from_state(plain["costs"], inside("costs", arrays))


def check_width(found: int, fitted: int) -> None:
    """Features must be as many as the router was fitted on.

    Raises:
        InputError: they are not.
    """
    if found != fitted:
        raise InputError(
            f"the router was fitted on {fitted} features, got {found}: "
            "encode the queries with the encoder it was fitted with"
        )
