"""What a user asks of compare."""

from dataclasses import dataclass, replace

from pointsman.errors import InputError

WAYS = ("exits", "cascade", "skips", "moe", "nested")
# What "moe" stands for where a language model is trained: each is a way of its own.
TEXT_MOE = ("moe", "fine-moe", "relu-moe")
UNITS = {"flops": "MFLOPs", "latency": "ms"}


@dataclass(frozen=True)
class Request:
    """What is asked for; see `pointsman compare --help`."""

    max_drop: float = 0.01
    confidence: float = 0.95
    cost: str = "flops"
    ways: tuple[str, ...] = WAYS
    seed: int = 0
    command: str = ""

    def check(self, kind: str) -> "Request":
        """Refuse what cannot be meant, and name the ways as this kind of data has them.

        Raises:
            InputError: a number out of range, or an unknown cost or way.
        """
        if not 0 < self.max_drop < 1:
            raise InputError(f"--max-drop lies between 0 and 1, got {self.max_drop}")
        if not 0 < self.confidence < 1:
            raise InputError(f"--confidence lies between 0 and 1, got {self.confidence}")
        if self.cost not in UNITS:
            raise InputError(f"--cost is one of {', '.join(UNITS)}, got {self.cost!r}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed is a whole number from 0 to {2**32 - 1}, got {self.seed}")
        unknown = [way for way in self.ways if way not in WAYS]
        if unknown or not self.ways:
            got = repr(unknown[0]) if unknown else "none"
            raise InputError(f"--ways takes one or more of {','.join(WAYS)}, got {got}")
        if len(set(self.ways)) < len(self.ways):
            raise InputError(f"--ways takes every way once, got {','.join(self.ways)}")
        offered = list(self.ways)
        if kind == "text":
            parts = {"moe": TEXT_MOE}
            offered = [part for way in self.ways for part in parts.get(way, (way,))]
        return replace(self, ways=tuple(offered))
