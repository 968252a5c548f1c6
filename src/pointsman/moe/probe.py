"""A numeric probe of what tokens depend on: change the others, and see whose output moves.

Routed layers declare a `Guarantee`; the probe looks for counterexamples. A leak that it shows is
real. Where it shows none, none was found among the changes that it tried.

Legend: T tokens, padding included, in the order of the flattened input.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.context import Context
from pointsman.moe.layer import MoE
from pointsman.select import Guarantee

MOST_PLACES = 12  # of each kind that are looked at, spread evenly over the input


@dataclass(frozen=True, eq=False)
class Leaks:
    """Which tokens were seen to depend on others, in the leading shape of the input.

    Attributes:
        later: output moved when tokens further down the batch changed.
        sequences: output moved when other sequences changed, or were left out.
        others: output moved when any other tokens changed; what `batch_independent` excludes.
    """

    later: Tensor
    sequences: Tensor
    others: Tensor

    @property
    def guarantee(self) -> Guarantee:
        """The strongest guarantee that nothing found speaks against."""
        causal = not bool(self.later.any())
        return Guarantee(causal and not bool(self.others.any()), causal)

    def __str__(self) -> str:
        parts = [
            f"{int(found.sum())} of {found.numel()} tokens depend on {what}"
            for found, what in (
                (self.later, "later tokens"),
                (self.sequences, "other sequences"),
                (self.others, "other tokens"),
            )
        ]
        return ", ".join(parts)


def leaks(
    layer: nn.Module,
    x: Tensor,
    *,
    mask: Tensor | None = None,
    context: Context | None = None,
    seed: int = 0,
    tolerance: float | None = None,
) -> Leaks:
    """Change tokens of an input and note which of the unchanged ones get another output.

    Changed are, in turn, everything after a place, all sequences but one (also by leaving them
    out), and all tokens but one, at up to 12 places each. New tokens are drawn three ways: as
    noise of the input's own size, as larger noise, and as copies of one unchanged token, which
    then compete with it for the same experts. The layer is called as it stands, in its mode, and
    with the same random numbers every time.

    Args:
        layer: x → y or (y, ...); called with `mask` and `context` where they are given.
        x: (..., S, D), or whatever the layer takes; float64 gives the sharpest answer.
        mask: (..., S) bool, False for padding.
        context: what the router reads; it is not changed.
        seed: of the new tokens, and of torch's generator during every call.
        tolerance: largest difference, relative to the largest output, that counts as none. None
            means the square root of the precision of x.

    Raises:
        InputError: the layer answers differently to the same input.
    """
    tolerance = torch.finfo(x.dtype).eps ** 0.5 if tolerance is None else tolerance
    probe = _Probe(layer, x, mask, context, seed, tolerance)
    probe.check_repeats()
    total, long = probe.total, probe.long
    later, others = probe.none(), probe.none()
    for cut in _spread(range(1, total)):
        later |= probe.moved(torch.arange(total) < cut)
    for place in _spread(range(total)):
        others |= probe.moved(torch.arange(total) == place)
    sequences = probe.none()
    for at in _spread(range(total // max(long, 1))):
        own = torch.arange(total) // long == at
        sequences |= probe.moved(own) | probe.moved_alone(own)
    return Leaks(*(found.reshape(probe.shape) for found in (later, sequences, others)))


def check_guarantee(
    layer: MoE,
    x: Tensor,
    *,
    guarantee: Guarantee | None = None,
    mask: Tensor | None = None,
    context: Context | None = None,
    seed: int = 0,
) -> Leaks:
    """Probe a layer, and refuse it if a leak speaks against what it declares.

    Args:
        layer: to probe.
        x: as for `leaks`.
        guarantee: to hold it to; None means what it declares. A decoder asks for `causal`.
        mask: as for `leaks`.
        context: as for `leaks`.
        seed: as for `leaks`.

    Returns:
        What was found, which may be less than what the guarantee allows.

    Raises:
        InputError: a leak that the guarantee excludes, with the tokens it was seen at.
    """
    promised = layer.guarantee if guarantee is None else guarantee
    found = leaks(layer, x, mask=mask, context=context, seed=seed)
    for promise, leak, what in (
        (promised.causal, found.later, "later tokens"),
        (promised.batch_independent, found.others | found.later, "other tokens of its batch"),
    ):
        if promise and bool(leak.any()):
            places = leak.flatten().nonzero().squeeze(1).tolist()
            more = ", ..." if len(places) > 5 else ""
            raise InputError(
                f"a token's output may not depend on {what} here, got {len(places)} tokens that "
                f"do, at places {', '.join(map(str, places[:5]))}{more} of {leak.numel()}: choose "
                "another router or selection, or declare a weaker guarantee"
            )
    return found


class _Probe:
    """One layer on one input: answers to changed inputs, beside the answer to the input itself."""

    def __init__(
        self,
        layer: nn.Module,
        x: Tensor,
        mask: Tensor | None,
        context: Context | None,
        seed: int,
        tolerance: float,
    ) -> None:
        self.layer, self.x, self.mask, self.context = layer, x, mask, context
        self.seed, self.tolerance = seed, tolerance
        self.dims = dims = layer.input_dims if isinstance(layer, MoE) else 1
        self.shape = x.shape[: x.ndim - dims]
        self.total, self.long = self.shape.numel(), self.shape[-1] if self.shape else 1
        self.rows = x.reshape(self.total, *x.shape[x.ndim - dims :])
        self.generator = torch.Generator().manual_seed(seed)
        self.before = self._answer(x, mask, context)
        # Noise is drawn row by row, so that a row at another place draws other noise.
        other = self._answer(x, mask, context, seed=seed + 1)
        self.noisy = bool(self._differ(other, self.before).any())

    def none(self) -> Tensor:
        """(T,) bool: no token."""
        return torch.zeros(self.total, dtype=torch.bool)

    def check_repeats(self) -> None:
        """Refuse a layer whose answers cannot be compared."""
        if bool(self._differ(self._answer(self.x, self.mask, self.context), self.before).any()):
            raise InputError(
                "the layer answers differently to the same input, so that a leak cannot be told: "
                "call eval(), or take out a random generator of its own"
            )

    def moved(self, same_T: Tensor) -> Tensor:
        """(T,) bool: tokens that stayed the same and whose output did not, in any trial."""
        found = self.none()
        if bool(same_T.all()) or not bool(same_T.any()):
            return found
        for fresh in self._trials(same_T):
            rows = self.rows.clone()
            rows[~same_T] = fresh
            answer = self._answer(rows.reshape(self.x.shape), self.mask, self.context)
            found |= same_T & self._differ(answer, self.before)
        return found

    def moved_alone(self, own_T: Tensor) -> Tensor:
        """(T,) bool: tokens of one sequence whose output is another without the other sequences."""
        if bool(own_T.all()) or self.noisy:
            return self.none()
        row = int(own_T.nonzero()[0]) // self.long
        shape = (-1, *self.shape[-1:], *self.rows.shape[1:])
        x = self.x.reshape(shape)[row : row + 1]
        mask = None if self.mask is None else self.mask.reshape(-1, self.long)[row : row + 1]
        answer = self._answer(x, mask, _row_of(self.context, self.shape, row))
        found = self.none()
        found[own_T] = self._differ(answer, self.before[own_T])
        return found

    def _trials(self, same_T: Tensor) -> Iterable[Tensor]:
        count = int((~same_T).sum())
        size = float(self.rows.std()) if self.rows.numel() > 1 else 1.0
        for scale in (size, 5 * size):
            noise = torch.randn(count, *self.rows.shape[1:], generator=self.generator)
            yield scale * noise.to(self.rows)
        places = same_T.nonzero().squeeze(1)
        chosen = places[int(torch.randint(len(places), (1,), generator=self.generator))]
        yield self.rows[chosen].expand(count, *self.rows.shape[1:])

    @torch.no_grad()
    def _answer(
        self, x: Tensor, mask: Tensor | None, context: Context | None, seed: int | None = None
    ) -> Tensor:
        """(T, ...), on the CPU."""
        given = {"mask": mask, "context": context}
        devices = [x.device] if x.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed if seed is None else seed)
            call: Callable[..., object] = self.layer
            found = call(x, **{name: value for name, value in given.items() if value is not None})
        y = found[0] if isinstance(found, tuple) else found
        assert isinstance(y, Tensor)
        flat = y.flatten(0, x.ndim - self.dims - 1)
        return flat.reshape(len(flat), math.prod(flat.shape[1:])).cpu()

    def _differ(self, one: Tensor, other: Tensor) -> Tensor:
        largest = float(self.before.abs().max()) if self.before.numel() else 0.0
        limit = self.tolerance * max(largest, 1e-30)
        return (one - other).abs().amax(dim=1) > limit


def _spread(places: range) -> list[int]:
    """At most twelve of them, evenly spread, with the first and the last."""
    if len(places) <= MOST_PLACES:
        return list(places)
    last = len(places) - 1
    return [places[round(at * last / (MOST_PLACES - 1))] for at in range(MOST_PLACES)]


def _row_of(context: Context | None, shape: torch.Size, row: int) -> Context | None:
    """The context of one sequence alone."""
    if context is None:
        return None
    own = {}
    for name in ("ids", "task", "state", "attention"):
        value = getattr(context, name)
        if value is not None:
            lead = 1 if name == "attention" else len(shape)
            own[name] = value.reshape(-1, *value.shape[max(lead - 1, 1) :])[row : row + 1]
    return Context(**own)
