"""Every error that pointsman raises on purpose.

    PointsmanError (ValueError)
    ├── InputError         data or arguments that a user gave
    ├── RouteError         a route, or the scores for one, that break their rules
    ├── UnitError          costs of different units mixed
    ├── PolicyError        a saved policy that cannot be read
    ├── StoreError         keys and ledger of a gateway that cannot be read (in `serve.store`)
    └── UnreachableError   a quality or a budget that nothing reaches

The text of an error is one line: the rule, what was received, where, and the way out.
"""


class PointsmanError(ValueError):
    """Root of the errors that pointsman raises on purpose."""


class InputError(PointsmanError):
    """Data or arguments given by a user break a rule."""


class RouteError(PointsmanError):
    """A route, or the scores meant for one, break a rule."""


class UnitError(PointsmanError):
    """Costs of different units were mixed."""


class PolicyError(PointsmanError):
    """A saved policy is damaged, incomplete, or of a newer version."""


class UnreachableError(PointsmanError):
    """No setting reaches the quality, or stays within the budget, that was asked for."""


class DegenerateWarning(UserWarning):
    """A set-up that runs, and cannot do what it is for: a router that cannot learn, for example."""


def reason(error: BaseException) -> str:
    """What went wrong with another library's error, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
