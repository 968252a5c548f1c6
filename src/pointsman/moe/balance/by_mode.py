"""One selection in training and another in evaluation. Legend: T tokens, E experts."""

from collections.abc import Callable

from torch import Tensor, nn

from pointsman.route import Route
from pointsman.select import Guarantee, guarantee_of


class ByMode(nn.Module):
    """Selects one way in training and another way in evaluation.

    Such as an assignment that fills the experts equally, which sees the whole batch, and the best
    expert of each token when served.

    Args:
        training: scores (T, E) to a route.
        evaluation: the same, for evaluation.

    Raises:
        RouteError: a selection that declares no guarantee.
    """

    def __init__(
        self, training: Callable[[Tensor], Route], evaluation: Callable[[Tensor], Route]
    ) -> None:
        super().__init__()
        # Under names of their own: `training` is the switch of every module.
        self.in_training, self.in_evaluation = training, evaluation
        self._guarantees = guarantee_of(training), guarantee_of(evaluation)

    @property
    def guarantee(self) -> Guarantee:
        """That of the selection in use."""
        return self._guarantees[0] if self.training else self._guarantees[1]

    def forward(self, scores: Tensor) -> Route:
        """Scores (T, E) to a route.

        Raises:
            RouteError: as the selection in use.
        """
        return self.in_training(scores) if self.training else self.in_evaluation(scores)
