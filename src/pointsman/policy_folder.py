"""A policy as a folder: a JSON description and safetensors, which refuse every byte that changed.

The description holds a digest of its own body and one of the weights' file. Reading runs no code
from them and believes nothing that the digests do not confirm.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pointsman.errors import PolicyError
from pointsman.writing import write_atomically

DESCRIPTION, WEIGHTS = "policy.json", "weights.safetensors"


def write_policy(
    folder: Path, body: Mapping[str, Any], tensors: Mapping[str, Tensor], kind: tuple[str, int]
) -> None:
    """Write both files; what is there is replaced once the new folder is whole.

    Args:
        folder: to write to; its parents are made.
        body: plain JSON values.
        tensors: by name, of any device. Some may share memory, as tied weights do: each is written.
        kind: format and version, for `read_policy`.

    Raises:
        OSError: it cannot be written there.
    """
    weights = save_tensors({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()})
    fresh = folder.with_name(folder.name + ".part")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        write_atomically(fresh / WEIGHTS, weights)
        write_atomically(fresh / DESCRIPTION, _described(body, weights, *kind))
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read_policy(folder: Path, kind: tuple[str, int], again: str) -> tuple[Any, bytes]:
    """The body and the weights' file that `write_policy` wrote.

    Args:
        folder: to read.
        kind: format and the latest version that is understood.
        again: what to do about a file that cannot be used, such as "run compare again".

    Raises:
        PolicyError: a file is missing or was changed, or it is of another format or newer version.
    """
    description, weights = _read(folder / DESCRIPTION), _read(folder / WEIGHTS)
    try:
        document = json.loads(description)
        form, version, body = document["format"], document["version"], document.get("body")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PolicyError(
            f"{folder / DESCRIPTION}: this is not a policy's description: {again}"
        ) from error
    if form != kind[0] or type(version) is not int or version < 1:
        raise PolicyError(
            f"{folder / DESCRIPTION}: this is not a {kind[0]}, its format is {form!r} version "
            f"{version!r}: {again}"
        )
    if version > kind[1]:
        raise PolicyError(
            f"{folder}: the policy has version {version}, this pointsman reads up to {kind[1]}: "
            "install a newer pointsman"
        )
    digests = document.get("digests")
    given = digests if isinstance(digests, dict) else {}
    for file, kept in (
        (WEIGHTS, given.get("weights") == hashlib.sha256(weights).hexdigest()),
        (DESCRIPTION, description == _described(body, weights, form, version)),  # spaces too
    ):
        if not kept:
            raise PolicyError(
                f"{folder / file}: the file is damaged or was changed after it was saved (its "
                f"digest does not match): bring back the original, or {again}"
            )
    return body, weights


def weights_digest(net: nn.Module) -> str:
    """One digest of every name, shape and value in a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}\n".encode())
        digest.update(save_tensors({"": plain}))
    return digest.hexdigest()


def _described(body: Any, weights: bytes, form: str, version: int) -> bytes:
    inside = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    document = {
        "format": form,
        "version": version,
        "digests": {
            "body": hashlib.sha256(inside).hexdigest(),
            "weights": hashlib.sha256(weights).hexdigest(),
        },
        "body": body,
    }
    return json.dumps(document, indent=1).encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PolicyError(f"{path}: the policy cannot be read ({error.strerror})") from error
