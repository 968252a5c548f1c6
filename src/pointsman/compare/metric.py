"""How quality is called and shown."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How quality, kept on a scale from 0 to 1, is shown: 0 is `worst` and 1 is `best`."""

    name: str
    worst: float
    best: float

    def shown(self, quality: float) -> float:
        """The value in the metric's own unit."""
        return self.worst + quality * (self.best - self.worst)


ACCURACY = Metric("accuracy", 0.0, 1.0)
BITS_PER_BYTE = Metric("bits per byte", 8.0, 0.0)
QUALITY = Metric("quality", 0.0, 1.0)  # of an evaluation log, whatever it scored
