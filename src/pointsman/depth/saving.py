"""A folder with a JSON description and safetensors, which refuses every byte that was changed.

The description holds a digest of its own body and one of the weights' file. Reading runs no code.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pointsman.errors import PolicyError
from pointsman.writing import write_atomically

DESCRIPTION, TENSORS = "policy.json", "weights.safetensors"


def write_folder(
    folder: Path, body: Mapping[str, Any], tensors: Mapping[str, Tensor], kind: tuple[str, int]
) -> None:
    """Write both files; what is there is replaced once the new folder is whole.

    Args:
        folder: to write to; its parents are made.
        body: plain JSON values.
        tensors: by name; of any device, copied.
        kind: format and version, for `read_folder`.

    Raises:
        PolicyError: it cannot be written there.
    """
    weights = save_tensors({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()})
    data = _described(body, hashlib.sha256(weights).hexdigest(), kind)
    fresh = folder.with_name(folder.name + ".part")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        write_atomically(fresh / TENSORS, weights)
        write_atomically(fresh / DESCRIPTION, data)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    except OSError as error:
        raise PolicyError(f"{folder}: the policy cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read_folder(folder: Path, kind: tuple[str, int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The body and the tensors that `write_folder` wrote.

    Raises:
        PolicyError: a file is missing or was changed, or it is of another format or newer version.
    """
    data, weights = _read(folder / DESCRIPTION), _read(folder / TENSORS)
    try:
        document = json.loads(data)
        form, version, body = document["format"], document["version"], document["body"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PolicyError(
            f"{folder / DESCRIPTION}: this is not the description of a policy: save it again"
        ) from error
    if form != kind[0] or type(version) is not int or version < 1:
        raise PolicyError(
            f"{folder / DESCRIPTION}: this is not a {kind[0]}, its format is {form!r} version "
            f"{version!r}"
        )
    if version > kind[1]:
        raise PolicyError(
            f"{folder}: the policy has version {version}, this pointsman reads up to {kind[1]}: "
            "install a newer pointsman"
        )
    if data != _described(body, hashlib.sha256(weights).hexdigest(), (form, version)):
        raise PolicyError(
            f"{folder}: the description or the weights are damaged or were changed after they were "
            "saved (their digests do not match): bring back the original, or save it again"
        )
    return body, load_tensors(weights)


def weights_digest(net: nn.Module) -> str:
    """One digest of every name, shape and value in a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}\n".encode())
        digest.update(save_tensors({"": plain}))
    return digest.hexdigest()


def _described(body: Mapping[str, Any], weights: str, kind: tuple[str, int]) -> bytes:
    inside = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    document = {
        "format": kind[0],
        "version": kind[1],
        "digests": {"body": hashlib.sha256(inside).hexdigest(), "weights": weights},
        "body": body,
    }
    return json.dumps(document, indent=1).encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PolicyError(f"{path}: the policy cannot be read ({error.strerror})") from error
