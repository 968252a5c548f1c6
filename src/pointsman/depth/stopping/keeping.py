"""How a saved policy names its stopping rule: by a name that the package exports, never by code.

A confidence is a function and is kept by its name. A rule is kept by the name of its class with
what `to_state` gives: plain values for JSON, and tensors.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pointsman.errors import PolicyError
from pointsman.run import Confidence, StoppingRule
from pointsman.select import margin, max_probability, negative_entropy

# The functions of logits alone that a saved policy may name.
CONFIDENCES = (max_probability, margin, negative_entropy)


def confidence_name(confidence: Confidence) -> str:
    """The name under which a policy keeps a confidence.

    Raises:
        PolicyError: it is none that can come back.
    """
    for known in CONFIDENCES:
        if confidence is known:
            return known.__name__
    given = getattr(confidence, "__name__", type(confidence).__name__)
    raise PolicyError(
        f"a saved policy can name {', '.join(f.__name__ for f in CONFIDENCES)}, not {given!r}: "
        "use one of them, or a stopping rule with to_state and from_state"
    )


def confidence_named(name: str) -> Confidence:
    """The confidence of that name.

    Raises:
        PolicyError: there is none.
    """
    for known in CONFIDENCES:
        if known.__name__ == name:
            return known
    raise PolicyError(f"there is no confidence {name!r}: it was saved by another version")


def rule_state(rule: Confidence | StoppingRule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A confidence or a rule as plain values and tensors.

    Raises:
        PolicyError: it cannot be kept: a function of one's own, or a rule without `to_state`.
    """
    if not isinstance(rule, StoppingRule):
        return {"confidence": confidence_name(rule)}, {}
    if not hasattr(rule, "to_state"):
        raise PolicyError(
            f"{type(rule).__name__} has no to_state, so a policy with it cannot be saved"
        )
    plain, tensors = rule.to_state()
    return {"rule": type(rule).__name__, "state": plain}, tensors


def rule_back(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Confidence | StoppingRule:
    """What `rule_state` gave, back.

    Raises:
        PolicyError: a name that this version does not have.
    """
    from pointsman.depth import stopping  # the rules themselves import this module

    if "confidence" in plain:
        return confidence_named(plain["confidence"])
    kind = getattr(stopping, plain["rule"]) if plain["rule"] in stopping.__all__ else None
    if not isinstance(kind, type) or not hasattr(kind, "from_state"):
        raise PolicyError(f"there is no stopping rule {plain['rule']!r} to bring back")
    rule = kind.from_state(plain["state"], tensors)
    if not isinstance(rule, StoppingRule):
        raise PolicyError(f"{plain['rule']!r} is no stopping rule")
    return rule
