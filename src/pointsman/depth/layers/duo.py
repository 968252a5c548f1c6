"""Feed-forwards of several sizes in every layer, one of them for each token.

Alizadeh et al., "Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models"
(2024, arXiv:2410.10846). Each layer has a big feed-forward, a small one of a sixteenth of its inner
width, and optionally none at all (bypass); attention is shared. Three stages:

1. the model is trained with a branch drawn by chance for each token and layer, so that any mixture
   works later (`mixed_loss`);
2. an oracle tries all patterns of a token and keeps the best (`duo_patterns`);
3. routers, one linear map a layer, are trained on a mixture of the branches by their probabilities,
   sharpened by an inverse temperature that grows, under one budget for all layers together:

    L = CE + w (mean over layers and tokens of p_big - target)^2

Where the paper is silent and we settled: w = 10, and the inverse temperature grows from 1 to 10 in
a straight line; the model is frozen in stage 3; to serve, one threshold on the scores of all layers
together keeps the budget (`DuoRouters.fit_bar`), and each token takes one branch.

Legend: n sequences, S tokens of each, D width, V vocabulary, L layers, E branches (0 big, 1 small,
2 none).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.cost import Cost, count_flops
from pointsman.depth.decoder import Decoder, DecoderBlock
from pointsman.errors import InputError
from pointsman.route import Route

# (layer, normed states (n, S, D)) -> branches (n, S) int64, or weights (n, S, E)
Choose = Callable[[int, Tensor], Tensor]

BIG, SMALL, BYPASS = 0, 1, 2


class SizedFeedForward(nn.Module):
    """A big feed-forward, a small one and, if asked, none; alone it is the big one.

    Args:
        width: D.
        big: inner width.
        small: inner width.
        bypass: whether a token may have neither.
    """

    def __init__(self, width: int, big: int, small: int, *, bypass: bool = False) -> None:
        super().__init__()
        if min(width, big, small) < 1:
            raise InputError(f"widths are at least 1, got {width}, {big} and {small}")
        self.sizes = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
            for inner in (big, small)
        )
        self.branches = 2 + bypass

    def forward(self, x: Tensor, choice: Tensor | None = None) -> Tensor:
        """What the chosen branch of each token adds, (..., D).

        Args:
            x: (..., D).
            choice: branches (...) int64, of which only those run; or weights (..., E) floating
                point, and all run; None: the big one.

        Raises:
            InputError: a choice of another shape.
        """
        if choice is None:
            big: Tensor = self.sizes[BIG](x)
            return big
        if choice.is_floating_point():
            if choice.shape != (*x.shape[:-1], self.branches):
                raise InputError(f"weights need one number a token and branch, got {choice.shape}")
            both = torch.stack([size(x) for size in self.sizes], dim=-1)
            return (both * choice[..., None, :2]).sum(dim=-1)
        if choice.shape != x.shape[:-1]:
            raise InputError(f"a choice is one branch a token, got {tuple(choice.shape)}")
        rows, flat = x.flatten(0, -2), choice.flatten()
        added = torch.zeros_like(rows)
        for at, size in enumerate(self.sizes):
            mine = (flat == at).nonzero().squeeze(1)
            if len(mine):
                added = added.index_copy(0, mine, size(rows[mine]))
        return added.reshape(x.shape)


class DuoDecoder(nn.Module):
    """A decoder whose layers have feed-forwards of several sizes; token ids -> logits (n, S, V).

    Args:
        small: inner width of the small ones. None: a sixteenth of the big one's, at least 1.
        bypass: whether a token may have no feed-forward in a layer.
        sizes: of `Decoder`: vocabulary, width, layers, heads, context.

    Attributes:
        decoder: with all tokens at the big feed-forwards this is the model, a `Trunk` as well.
    """

    def __init__(self, *, small: int | None = None, bypass: bool = False, **sizes: int) -> None:
        super().__init__()

        def inner(width: int) -> nn.Module:
            big = 4 * width
            return SizedFeedForward(width, big, small or max(big // 16, 1), bypass=bypass)

        self.decoder = Decoder(**sizes, inner=inner)
        self.layers, self.branches = len(self.decoder.blocks), 2 + bypass

    def forward(self, ids: Tensor, choices: Tensor | Choose | None = None) -> Tensor:
        """(n, S) -> (n, S, V).

        Args:
            ids: integers.
            choices: branches (n, S, L) int64; or a function that chooses at each layer; None: big.
        """
        choose = _columns(choices) if isinstance(choices, Tensor) else choices
        x, places = self.decoder.begin(ids), positions(ids)
        for at in range(self.layers):
            x = self.attended(at, x, places)
            x = self.fed(at, x, choose)
        return self.decoder.finish(x)

    def attended(self, at: int, x: Tensor, places: Tensor) -> Tensor:
        """The states after the attention of a layer."""
        block = self.block(at)
        mixed: Tensor = block.attention(block.norm_1(x), places)
        return x + mixed

    def fed(self, at: int, x: Tensor, choose: Choose | None) -> Tensor:
        """The states after the feed-forward of a layer."""
        block = self.block(at)
        tokens = block.norm_2(x)
        added: Tensor = block.feed_forward(tokens, None if choose is None else choose(at, tokens))
        return x + added

    def block(self, at: int) -> DecoderBlock:
        """A layer."""
        block = self.decoder.blocks[at]
        assert isinstance(block, DecoderBlock)
        return block

    def route(self, choices_nSL: Tensor) -> Route:
        """Tokens, sequence after sequence, over the L * E branches; branch at * E + choice."""
        first = torch.arange(self.layers, device=choices_nSL.device) * self.branches
        return Route.from_indices(
            (choices_nSL + first).flatten(0, 1), num_branches=self.layers * self.branches
        )

    def branch_costs(self) -> Cost:
        """MFLOPs of one token in each branch, amount (L * E,), for `route.cost`; counted."""
        spent = []
        for at in range(self.layers):
            block = self.block(at)
            token = torch.zeros(1, block.norm_2.normalized_shape[0])
            token = token.to(self.decoder.embedding.weight)
            sizes: Any = block.feed_forward.sizes
            spent += [float(count_flops(size, token)) for size in sizes]
            spent += [0.0] * (self.branches - 2)
        return Cost(np.array(spent), "MFLOPs")


def positions(ids: Tensor) -> Tensor:
    """(n, S): 0 to S - 1 in every row."""
    return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)


def _columns(choices_nSL: Tensor) -> Choose:
    return lambda at, _: choices_nSL[..., at]


def random_choices(model: DuoDecoder, ids: Tensor, generator: torch.Generator | None) -> Tensor:
    """A branch for each token and layer, (n, S, L), all equally likely."""
    shape = (*ids.shape, model.layers)
    return torch.randint(model.branches, shape, generator=generator).to(ids.device)


def mixed_loss(model: DuoDecoder, windows: Tensor, generator: torch.Generator | None) -> Tensor:
    """Mean cross entropy in nats of windows (n, S + 1) under branches drawn by chance: stage 1."""
    ids = windows[:, :-1]
    logits = model(ids, random_choices(model, ids, generator))
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


class DuoRouters(nn.Module):
    """One linear map a layer, from a token's normed state to scores of the branches.

    Args:
        model: whose width, layers and branches these are.

    Attributes:
        bar: what a token's score for big must reach over the best of the others, the same in all
            layers; 0 until fitted.
    """

    def __init__(self, model: DuoDecoder) -> None:
        super().__init__()
        like = model.decoder.embedding.weight
        self.maps = nn.ModuleList(
            nn.Linear(like.shape[1], model.branches, device=like.device, dtype=like.dtype)
            for _ in range(model.layers)
        )
        self.bar: Tensor
        self.register_buffer("bar", like.new_zeros(()).detach())

    def choose(self, at: int, tokens: Tensor) -> Tensor:
        """The branch of each token, (n, S): big above the bar, else the best of the others."""
        scores = self.maps[at](tokens)
        return torch.where(self._lead(scores) >= self.bar, BIG, scores[..., 1:].argmax(dim=-1) + 1)

    @staticmethod
    def _lead(scores: Tensor) -> Tensor:
        return scores[..., BIG] - scores[..., 1:].amax(dim=-1)

    def choices(self, model: DuoDecoder, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, S, V) and the branches chosen on the way, (n, S, L)."""
        made: list[Tensor] = []

        def choose(at: int, tokens: Tensor) -> Tensor:
            made.append(self.choose(at, tokens))
            return made[-1]

        return model(ids, choose), torch.stack(made, dim=-1)

    def loss(
        self, model: DuoDecoder, windows: Tensor, target: float, sharpness: float, weight: float
    ) -> Tensor:
        """Cross entropy of the mixture plus the budget's loss, for windows (n, S + 1): stage 3.

        Args:
            model: frozen by whoever calls.
            windows: token ids.
            target: share of (token, layer) pairs that should be big.
            sharpness: the inverse temperature.
            weight: of the budget's loss.
        """
        shares: list[Tensor] = []

        def choose(at: int, tokens: Tensor) -> Tensor:
            shares.append((self.maps[at](tokens) * sharpness).softmax(dim=-1))
            return shares[-1]

        logits = model(windows[:, :-1], choose)
        entropy = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        big = torch.stack([share[..., BIG].mean() for share in shares]).mean()
        return entropy + weight * (big - target).square()

    @torch.no_grad()
    def fit_bar(self, model: DuoDecoder, ids: Tensor, target: float, rounds: int = 8) -> None:
        """Set the bar at which a share `target` of (token, layer) pairs is big on these texts.

        What a layer chooses changes what later layers see, so the quantile is taken a few times,
        each on what the bar before led to.
        """
        for _ in range(rounds):
            leads: list[Tensor] = []

            def choose(at: int, tokens: Tensor, leads: list[Tensor] = leads) -> Tensor:
                leads.append(self._lead(self.maps[at](tokens)))
                return self.choose(at, tokens)

            model(ids, choose)
            lead = torch.stack(leads).flatten()
            rank = min(max(round(target * len(lead)), 0), len(lead) - 1)
            self.bar.copy_(lead.sort(descending=True).values[max(rank - 1, 0)])


def fit_duo_routers(
    model: DuoDecoder,
    text: Tensor,
    target: float,
    *,
    updates: int = 300,
    window: int | None = None,
    weight: float = 10.0,
    sharpest: float = 10.0,
    batch: int = 16,
    rate: float = 5e-3,
    seed: int = 0,
) -> DuoRouters:
    """Stage 3: routers under a budget on a frozen model.

    Args:
        model: left as it is, in evaluation mode at the end.
        text: (N,) token ids.
        target: share of (token, layer) pairs that are big, in [0, 1].
        updates: of AdamW.
        window: tokens of a window. None: the context.
        weight: of the budget's loss.
        sharpest: the inverse temperature at the end; it grows from 1 in a straight line.
        batch: windows an update.
        rate: the highest.
        seed: of windows and weights.

    Raises:
        InputError: a target out of range, or a text that is shorter than a window.
    """
    from pointsman.depth.decoding.training import fit_text

    if not 0 <= target <= 1:
        raise InputError(f"the target is a share of the big branches, in [0, 1], got {target}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        routers = DuoRouters(model)
    size, done = window or model.decoder.context, 0

    def loss_of(windows: Tensor) -> Tensor:
        nonlocal done
        sharpness = 1 + (sharpest - 1) * done / max(updates - 1, 1)
        done += 1
        return routers.loss(model, windows, target, sharpness, weight)

    learning = [value.requires_grad for value in model.parameters()]
    model.requires_grad_(False)
    try:
        fit_text(
            routers, loss_of, text, updates=updates, window=size, batch=batch, rate=rate, seed=seed
        )
    finally:
        for value, before in zip(model.parameters(), learning, strict=True):
            value.requires_grad_(before)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - size, (64, 1), generator=generator)
    routers.fit_bar(model, text[starts + torch.arange(size)].long(), target)
    return routers
