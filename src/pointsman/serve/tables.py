"""Tables of TOML as dataclasses, checked field by field."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pointsman.errors import InputError

T = TypeVar("T")


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """A value that must be a table.

    Raises:
        InputError: it is none.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a table, got {value!r}")
    return value


def table(kind: type[T], values: Any, where: str) -> T:
    """A table of TOML as a dataclass: known keys only, of the right types, no number negative.

    Args:
        kind: the dataclass, with fields of str, int, float, bool, a tuple of texts, a Literal, or
            one of these or None.
        values: of the table.
        where: it stands, for the words of an error.

    Raises:
        InputError: a key that is not known or is missing, or a value that does not fit.
    """
    given = mapping(values, where)
    parts = fields(kind)  # type: ignore[arg-type]
    names = [part.name for part in parts]
    if unknown := sorted(set(given) - set(names)):
        raise InputError(f"{where}: {unknown[0]!r} is not known; known are {', '.join(names)}")
    hints = get_type_hints(kind)
    for part in parts:
        if part.name in given:
            continue
        if part.default is MISSING and part.default_factory is MISSING:
            raise InputError(f"{where} needs {part.name}")
    read = {key: _value(value, hints[key], f"{where} {key}") for key, value in given.items()}
    return kind(**read)


def _value(value: Any, hint: Any, where: str) -> Any:
    choices = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return _value(value, choices[0], where)  # T | None: TOML has no null
    if get_origin(hint) is Literal:
        if value in choices:
            return value
        raise InputError(f"{where} must be one of {', '.join(choices)}, got {value!r}")
    if get_origin(hint) is tuple:
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return tuple(value)
        raise InputError(f"{where} must be a list of texts, got {value!r}")
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise InputError(f"{where} must be {_NAMES[hint]}, got {value!r}")
    if hint in (int, float) and not 0 <= value < 1e15:
        raise InputError(f"{where} must be finite and not negative, got {value}")
    return value


_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
