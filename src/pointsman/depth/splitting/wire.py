"""A state as bytes and back, exactly: what crosses from one half of a network to the other.

A message is a length (8 bytes), a JSON description and the raw bytes of its tensors. Nothing in it
is code, so a message can be wrong but cannot run anything.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pointsman.errors import InputError, PointsmanError
from pointsman.run import State

LENGTH = 8  # bytes
LARGEST_DESCRIPTION = 1 << 24

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.complex64,
        torch.complex128,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


class PartnerError(PointsmanError):
    """The other half of a split network went away, failed, or speaks another language."""


def pack(kind: str, state: State = None, **about: Any) -> list[bytes | memoryview]:
    """A message as pieces to be sent one after the other.

    Args:
        kind: what the message is.
        state: tensors, or tuples, lists and dicts (with text keys) of tensors, None allowed.
        **about: anything that JSON holds.

    Raises:
        InputError: a state of anything else.
    """
    leaves: list[Tensor] = []
    tree = _tree(state, leaves)
    body = [_raw(leaf) for leaf in leaves]
    text = json.dumps({"kind": kind, "about": about, "state": tree}).encode()
    total = LENGTH + len(text) + sum(len(raw) for raw in body)
    head = total.to_bytes(LENGTH, "big") + len(text).to_bytes(LENGTH, "big")
    return [head + text, *body]


def size(pieces: Sequence[bytes | memoryview]) -> int:
    """Bytes of a message on the wire."""
    return sum(len(piece) for piece in pieces)


def unpack(body: bytearray) -> tuple[str, State, dict[str, Any]]:
    """What `pack` was given: kind, state, about.

    Args:
        body: of one message, without its first eight bytes.

    Raises:
        PartnerError: a message that does not fit its own description.
    """
    try:
        length = int.from_bytes(body[:LENGTH], "big")
        if length > min(LARGEST_DESCRIPTION, len(body)):
            raise ValueError(f"a description of {length} bytes")
        text = json.loads(bytes(body[LENGTH : LENGTH + length]))
        place = [LENGTH + length]
        state = _state(text["state"], body, place)
        if place[0] != len(body):
            raise ValueError(f"{len(body) - place[0]} bytes too many")
        return text["kind"], state, text["about"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PartnerError(
            f"a message does not fit its description ({error}): do both sides run the same version?"
        ) from error


def moved(state: State, device: torch.device) -> State:
    """The same state on another device."""
    match state:
        case Tensor():
            return state.to(device)
        case tuple() | list():
            return type(state)(moved(part, device) for part in state)
        case dict():
            return {key: moved(part, device) for key, part in state.items()}
    return state


def _tree(state: State, leaves: list[Tensor]) -> Any:
    match state:
        case None:
            return None
        case Tensor():
            name = str(state.dtype).removeprefix("torch.")
            if name not in _DTYPES:
                raise InputError(f"tensors of {state.dtype} cannot be sent: cast them first")
            leaves.append(state)
            return {"of": "tensor", "dtype": name, "shape": list(state.shape)}
        case tuple() if not hasattr(state, "_fields"):
            return {"of": "tuple", "parts": [_tree(part, leaves) for part in state]}
        case list():
            return {"of": "list", "parts": [_tree(part, leaves) for part in state]}
        case dict() if all(isinstance(key, str) for key in state):
            parts = {key: _tree(part, leaves) for key, part in state.items()}
            return {"of": "dict", "parts": parts}
    raise InputError(
        "a state that is sent is tensors in tuples, lists and dicts with text keys, got "
        f"{type(state).__name__}"
    )


def _raw(leaf: Tensor) -> memoryview:
    flat = leaf.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    raw: Any = flat.view(torch.uint8).numpy()
    return memoryview(raw)


def _state(tree: Any, body: bytearray, place: list[int]) -> State:
    if tree is None:
        return None
    match tree["of"]:
        case "tensor":
            return _tensor(_DTYPES[tree["dtype"]], [int(n) for n in tree["shape"]], body, place)
        case "tuple":
            return tuple(_state(part, body, place) for part in tree["parts"])
        case "list":
            return [_state(part, body, place) for part in tree["parts"]]
        case "dict":
            return {key: _state(part, body, place) for key, part in tree["parts"].items()}
    raise ValueError(f"a {tree['of']!r}")


def _tensor(dtype: torch.dtype, shape: list[int], body: bytearray, place: list[int]) -> Tensor:
    count = math.prod(shape)
    start, stop = place[0], place[0] + count * dtype.itemsize
    if min(shape, default=0) < 0 or stop > len(body):
        raise ValueError(f"a tensor of shape {shape} in {len(body) - start} bytes")
    place[0] = stop
    found = torch.empty(shape, dtype=dtype)
    if count:
        raw = torch.frombuffer(body, dtype=torch.uint8, count=stop - start, offset=start)
        found.reshape(-1).view(torch.uint8).copy_(raw)
    return found
