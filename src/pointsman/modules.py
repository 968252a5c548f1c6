"""What every level does with torch modules before it runs them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Modules in evaluation mode meanwhile; every submodule gets its own mode back afterwards."""
    modes = {module: module.training for root in modules for module in root.modules()}
    try:
        for root in modules:
            root.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
