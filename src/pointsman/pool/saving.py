"""How the parts of a policy are kept: plain JSON values and arrays, and nothing that runs code."""

from collections.abc import Mapping
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

Plain = Mapping[str, Any]
Arrays = Mapping[str, npt.NDArray[Any]]


class Saved(Protocol):
    """A fitted part (encoder, router, strategy) that can be written down and brought back.

    What was fitted by scikit-learn is kept as the bytes of a `skops` file in a uint8 array.
    """

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Keywords and small values as plain JSON, everything large as named arrays."""
        ...

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """The same part again: it predicts the same to the last bit."""
        ...


def nested(
    parts: Mapping[str, tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]],
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """The states of several parts as one: plain values by name, arrays under "name/"."""
    plain = {name: state[0] for name, state in parts.items()}
    arrays = {
        f"{name}/{key}": np.ascontiguousarray(array)
        for name, state in parts.items()
        for key, array in state[1].items()
    }
    return plain, arrays


def inside(name: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    """The arrays that `nested` put under a name."""
    start = f"{name}/"
    return {
        key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)
    }
