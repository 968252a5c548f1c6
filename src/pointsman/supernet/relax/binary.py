"""ProxylessNAS: only one path is run to learn weights, and two to learn the architecture.

Cai, Zhu and Han, "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware"
(2018, arXiv 1812.00332). The gates are `GumbelGate` (one path) and `two_path_gate`; the expected
latency is an `ExpectedCost` added to the loss; here is what keeps a step on two options from moving
the probabilities of the rest.
"""

from typing import Any

import torch

# Adam without momentum: options that were not drawn have gradient 0 and must stay where they are.
BETAS = (0.0, 0.999)


def keep_unsampled(optimiser: torch.optim.Optimizer) -> None:
    """After every step, shift the logits it moved so that all other probabilities stay as before.

    The logits of one tensor that have a gradient are those of the options that were drawn. They are
    shifted together until their exponentials sum to what they did before, so probability moves
    between them alone.

    Args:
        optimiser: of a relaxation's logits, without momentum or decay; changed in place.
    """
    before: dict[torch.Tensor, torch.Tensor] = {}

    def remember(*_: Any) -> None:
        before.clear()
        for group in optimiser.param_groups:
            before.update((p, p.detach().clone()) for p in group["params"] if p.grad is not None)

    def rescale(*_: Any) -> None:
        with torch.no_grad():
            for parameter, old in before.items():
                assert parameter.grad is not None
                drawn = parameter.grad != 0
                if bool(drawn.any()):
                    shift = old[drawn].logsumexp(dim=0) - parameter[drawn].logsumexp(dim=0)
                    parameter[drawn] += shift

    optimiser.register_step_pre_hook(remember)
    optimiser.register_step_post_hook(rescale)
