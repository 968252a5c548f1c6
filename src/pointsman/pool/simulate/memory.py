"""Memory that several models on one node share, given and taken back in steps.

Legend: M models.
"""

from math import ceil, inf

from pointsman.errors import InputError


class StepMemory:
    """Space for each model's keys and values, resized in steps, whose sum keeps to a limit.

    Every request reserves what it may need at most. A model is given whole steps, and one spare
    step or more if there is room, so that few requests need a resize; what it no longer needs is
    taken back once there is twice as much to spare, or when another model needs it. What shrinks
    does so before anything grows: the sum never exceeds the limit, also in between.

    Args:
        models: M.
        limit: in tokens, say; `inf` for no limit.
        step: tokens that are given or taken at once.
        spare: steps beyond the need.

    Attributes:
        need: (M,) reserved.
        granted: (M,) given.
        resizes: times that any model's space changed, each of which would copy what is in it.

    Raises:
        InputError: a number out of range; a release of what was not reserved.

    Source: memory scaling of Xu et al., "LLM-Mesh" (2025, arXiv 2507.00507), from descriptions of
    it: steps, expected need, ordered operations and spare room. How much to spare is ours.
    """

    def __init__(self, models: int, limit: float, *, step: float = 1024, spare: int = 1) -> None:
        if models < 1 or not limit > 0 or not step > 0 or spare < 0:
            raise InputError(
                "models, limit and step must be above 0 and spare at 0 or more, got "
                f"{models}, {limit}, {step} and {spare}"
            )
        self.limit = limit
        self.step = step
        self.spare = spare
        self.need = [0.0] * models
        self.granted = [0.0] * models
        self.resizes = 0

    def _steps(self, need: float) -> float:
        return ceil(need / self.step) * self.step

    def fits(self, model: int, amount: float) -> bool:
        """Whether `reserve` would succeed."""
        need = [n + amount * (m == model) for m, n in enumerate(self.need)]
        return self.limit == inf or sum(map(self._steps, need)) <= self.limit

    def reserve(self, model: int, amount: float) -> bool:
        """Take in a request's need; False, and nothing changed, if there is no room for it."""
        if not self.fits(model, amount):
            return False
        self.need[model] += amount
        least = self._steps(self.need[model])
        if least > self.granted[model]:
            self._make_room(model, least)
            room = self.limit - sum(self.granted) + self.granted[model]
            spare = min(self.spare, (room - least) // self.step)
            self._resize(model, least + spare * self.step)
        return True

    def release(self, model: int, amount: float) -> None:
        """Give back what a request had reserved."""
        if amount > self.need[model]:
            raise InputError(
                f"model {model} reserved {self.need[model]:g}, so {amount:g} cannot be released"
            )
        self.need[model] -= amount
        least = self._steps(self.need[model])
        if self.granted[model] - least > 2 * self.spare * self.step:
            self._resize(model, least + self.spare * self.step)

    def _make_room(self, model: int, least: float) -> None:
        """Shrink others, those with most to spare first, until `least` fits."""
        while sum(self.granted) - self.granted[model] + least > self.limit:
            slack = {
                m: self.granted[m] - self._steps(n) for m, n in enumerate(self.need) if m != model
            }
            other = max(slack, key=lambda m: slack[m])
            self._resize(other, self._steps(self.need[other]))

    def _resize(self, model: int, size: float) -> None:
        self.resizes += size != self.granted[model]
        self.granted[model] = size
