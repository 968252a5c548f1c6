"""What a run tells about its progress."""

from typing import Protocol


class Progress(Protocol):
    """Told what the run is doing; work is in training FLOPs, or what takes as long."""

    def plan(self, total: float) -> None:
        """How much work there is in all."""

    def begin(self, name: str) -> None:
        """What is done now."""

    def advance(self, work: float) -> None:
        """So much more is done."""


class Silent:
    """Progress that nobody watches."""

    def plan(self, total: float) -> None:
        """Nothing."""

    def begin(self, name: str) -> None:
        """Nothing."""

    def advance(self, work: float) -> None:
        """Nothing."""
