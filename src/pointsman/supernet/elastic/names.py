"""Finding modules in a network by patterns of their names."""

import re

from torch import nn

from pointsman.errors import InputError


def matching(model: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    """Modules by the pattern of their dotted names, in order of definition.

    Args:
        model: any module.
        pattern: "*" stands for anything within one part of a name, "**" for any parts.

    Raises:
        InputError: nothing matches.
    """
    regex = re.escape(pattern).replace(r"\*\*\.", r"(?:.*\.)?").replace(r"\*\*", ".*")
    expression = re.compile(regex.replace(r"\*", r"[^.]+"))
    found = [(name, m) for name, m in model.named_modules() if expression.fullmatch(name)]
    if not found:
        names = [name for name, _ in model.named_modules() if name]
        raise InputError(
            f"a pattern matches the name of a module at least, {pattern!r} matches none: the names "
            f"are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        )
    return found


def longest_stack(model: nn.Module) -> tuple[str, nn.Module]:
    """The list of blocks of one class that holds the most parameters, as a transformer's layers.

    Raises:
        InputError: no `nn.ModuleList` or `nn.Sequential` has two blocks of one class.
    """
    found: list[tuple[int, str, nn.Module]] = []
    for name, module in model.named_modules():
        blocks = list(module.children())
        is_stack = isinstance(module, nn.ModuleList | nn.Sequential) and len(blocks) > 1
        if is_stack and len({type(block) for block in blocks}) == 1:
            found.append((sum(p.numel() for p in module.parameters()), name, module))
    if not found:
        raise InputError(
            "depth is elastic in an nn.ModuleList or nn.Sequential of blocks of one class, this "
            "network has none: name the list of blocks"
        )
    _, name, module = max(found, key=lambda item: item[0])
    return name, module


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
