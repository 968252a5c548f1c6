"""Published systems, each a function of about ten lines that puts parts together."""

from pointsman.moe.systems.grouped import (
    decode,
    encode,
    first_choices_first,
    megablocks,
    padded_rows,
    places,
    slots_per_expert,
    tutel,
)

__all__ = [
    "decode",
    "encode",
    "first_choices_first",
    "megablocks",
    "padded_rows",
    "places",
    "slots_per_expert",
    "tutel",
]
