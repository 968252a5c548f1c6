"""What a user's function makes; a command line names it as module:function or file.py:function."""

import importlib
import importlib.util
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pointsman.errors import InputError, reason


def make(named: str) -> Any:
    """What the function gives, called without arguments.

    Args:
        named: "package.module:function" or "path/to/file.py:function".

    Raises:
        InputError: there is no such file, module or function, or it fails.
    """
    module, function = _module(named), named.rpartition(":")[2]
    made = getattr(module, function, None)
    if not callable(made):
        known = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
        raise InputError(
            f"{named}: there is no function {function!r}, only {', '.join(sorted(known)[:8])}"
        )
    try:
        return made()
    except Exception as error:  # whatever a user's function does
        raise InputError(f"{named} failed: {type(error).__name__}: {reason(error)}") from error


def _module(named: str) -> ModuleType:
    """The module before the colon, imported once."""
    where, colon, function = named.rpartition(":")
    if not (where and colon and function.isidentifier()):
        raise InputError(f"a model is named as module:function or file.py:function, got {named!r}")
    try:
        if not where.endswith(".py"):
            if "" not in sys.path:
                sys.path.insert(0, "")
            return importlib.import_module(where)
        path = Path(where).resolve()
        if not path.is_file():
            raise InputError(f"{where}: there is no such file")
        name = f"_searched_{path.stem}"
        if name not in sys.modules:
            plan = importlib.util.spec_from_file_location(name, path)
            assert plan is not None
            assert plan.loader is not None
            module = sys.modules[name] = importlib.util.module_from_spec(plan)
            plan.loader.exec_module(module)
        return sys.modules[name]
    except InputError:
        raise
    except Exception as error:  # whatever a user's module does
        sys.modules.pop(f"_searched_{Path(where).stem}", None)
        raise InputError(
            f"{where} cannot be imported: {type(error).__name__}: {reason(error)}"
        ) from error


@dataclass(frozen=True)
class Packed:
    """Something made of a user's module, to be unpacked in another process by calling it."""

    named: str
    content: bytes

    @classmethod
    def of(cls, named: str, made: Any) -> "Packed":
        """Pack it.

        Raises:
            InputError: it cannot be pickled, for example because a lambda is in it.
        """
        try:
            return cls(named, pickle.dumps(made))
        except Exception as error:  # pickle raises whatever is in the way
            raise InputError(
                f"{named}: what it makes cannot be sent to workers ({reason(error)}): define its "
                "classes and functions at the top of the file, or leave out --workers"
            ) from error

    def __call__(self) -> Any:
        """The copy."""
        _module(self.named)
        return pickle.loads(self.content)
