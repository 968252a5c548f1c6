"""The file that holds a policy: safetensors, with a digest over every byte.

The arrays are the tensors of the file. Its metadata holds the format, the version, the policy's
description as JSON, and the SHA-256 of the whole file with the digest's own 64 characters taken as
zeros, so that no byte can change unseen. Reading runs no code.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from pointsman.errors import PolicyError
from pointsman.writing import write_atomically

FORMAT, VERSION = "pointsman-pool-policy", 1
FILE = "policy.safetensors"
BLANK = "0" * 64


def place_of(path: Path) -> Path:
    """The file itself: a path that does not end in .safetensors is the folder that holds it."""
    return path if path.suffix == ".safetensors" and not path.is_dir() else path / FILE


def to_bytes(body: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """A policy's file.

    Raises:
        PolicyError: the description is not plain JSON, or an array is not of numbers.
    """
    try:
        described = json.dumps(body, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PolicyError(
            f"a policy's description must be plain JSON with finite numbers ({error}): leave out "
            "what is not"
        ) from error
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise PolicyError(f"the arrays of a policy hold numbers, {name!r} is {array.dtype}")
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "sha256": BLANK,
        "policy": described,
    }
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data: bytes = save_arrays(plain, metadata)
    head, tail = _around(data, BLANK)
    return head + _digest(head, tail).encode() + tail


def from_bytes(
    data: bytes, source: str = "the policy"
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """The description and the arrays in a policy's file.

    Args:
        data: the whole file.
        source: named in errors.

    Raises:
        PolicyError: not whole, not a policy, of a newer version, or changed since it was written.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        form, version, digest = metadata["format"], metadata["version"], metadata["sha256"]
        described = metadata["policy"]
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise PolicyError(
            f"{source}: this is not a whole policy file (no description can be read): bring back "
            "the original, or run compare again"
        ) from error
    if form != FORMAT:
        raise PolicyError(f"{source}: this is not a policy of a pool, its format is {form!r}")
    if not (isinstance(version, str) and version.isascii() and version.isdigit()):
        raise PolicyError(f"{source}: the policy's version cannot be read, it says {version!r}")
    if len(version) > 6 or int(version) > VERSION:
        raise PolicyError(
            f"{source}: the policy has version {version[:20]}, this pointsman reads up to "
            f"{VERSION}: install a newer pointsman"
        )
    around = (
        _around(data, digest)
        if isinstance(digest, str) and digest.isascii() and len(digest) == 64
        else None
    )
    if around is None or _digest(*around) != digest:
        raise PolicyError(
            f"{source}: the file is damaged or was changed after it was saved (its digest does not "
            "match): bring back the original, or run compare again"
        )
    try:
        body, arrays = json.loads(described), load_arrays(data)
    except Exception as error:  # what another program wrote, with a digest that matches
        raise PolicyError(
            f"{source}: the policy cannot be read ({type(error).__name__}): run compare again"
        ) from error
    if not isinstance(body, dict):
        raise PolicyError(f"{source}: the policy's description is no object: run compare again")
    return body, arrays


def write(path: Path, body: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Path:
    """Write a policy, whole or not at all; the file that was written.

    Raises:
        PolicyError: as `to_bytes`, or it cannot be written there.
    """
    file, data = place_of(path), to_bytes(body, arrays)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, data)
    except OSError as error:
        raise PolicyError(f"{file}: the policy cannot be written ({error.strerror})") from error
    return file


def read(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Read a policy's file, or that in a folder.

    Raises:
        PolicyError: as `from_bytes`, or it cannot be read.
    """
    file = place_of(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise PolicyError(f"{file}: the policy cannot be read ({error.strerror})") from error
    return from_bytes(data, str(file))


def _around(data: bytes, digest: str) -> tuple[bytes, bytes]:
    """What stands before and behind the digest's characters in the header."""
    length = 8 + int.from_bytes(data[:8], "little")
    place = data.find(b'"sha256":"' + digest.encode(), 8, length)
    start = place + len('"sha256":"') if place >= 0 else len(data)
    return data[:start], data[start + len(digest) :]


def _digest(head: bytes, tail: bytes) -> str:
    digest = hashlib.sha256(head)
    digest.update(BLANK.encode())
    digest.update(tail)
    return digest.hexdigest()
