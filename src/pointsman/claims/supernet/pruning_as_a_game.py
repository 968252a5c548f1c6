"""Pruning as a Game: units leave the network when taking part does not pay.

"Pruning as a Game: Equilibrium-Driven Sparsification of Neural Networks" (2025).

Every unit is a player whose participation in [0, 1] scales it; players climb their own utility
while the weights descend the loss. The part is `supernet.pruning.PruningGame`, which says what of
it is certain and what is reconstructed: the sheet is rated low, the paper's formulas were not seen.

What was settled:
- Digits, a network 64-128-10 trained for 400 updates, then every hidden unit twice with half of
  its outgoing weight each, so that half of the 256 units are certainly of no use.
- The game is played for 600 updates of weights and players. Prices were chosen on seed 100. The
  same training without prices, and magnitude pruning to as many units with 600 updates after it,
  stand beside it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import nn

    from pointsman.claims.testbeds import Digits

UNITS = 128
TRAINED, PLAYED = 400, 600
BLUR = 0.05  # of the twins' weights
PRICE, RIVALRY, SIZE, RATE = 2e-3, 4e-3, 1e-4, 0.5


def quick() -> None:
    """In a quadratic game the dynamics end at the equilibrium; who gains nothing alone vanishes."""
    import torch

    from pointsman.supernet.pruning import participation

    gain = torch.tensor([0.9, 0.5, 0.2, 0.0, -0.3], dtype=torch.float64)
    steep, rivalry = 1.0, 0.3
    rivals = torch.ones(5, 5, dtype=torch.float64)
    s = torch.full((5,), 0.5, dtype=torch.float64)
    for _ in range(2000):
        s = participation(s, gain - steep * s, rivals, price=0.0, rivalry=rivalry, rate=0.1)
    marginal = gain - steep * s - rivalry * (s.sum() - s)
    inside = (s > 0) & (s < 1)
    must(bool((marginal[inside].abs() < 1e-9).all()), "who takes part is at its best answer")
    must(bool((marginal[s == 0] <= 1e-9).all()), "who is out would not gain by entering")
    must(bool((s[gain <= 0] == 0).all()), "who gains nothing alone ends at 0")


def full(seed: int) -> Figures:
    """Units left and test accuracy after the game, without prices, and by magnitude."""
    import copy

    from pointsman.claims import testbeds
    from pointsman.supernet.pruning import PruningGame, parameters, prune

    data = testbeds.digits(seed)
    doubled = _doubled(seed, data)
    example = data.train.x[:2]

    def accuracy(network: "nn.Module") -> float:
        return testbeds.accuracy(network(data.test.x), data.test.y)

    found = {"before: accuracy": accuracy(doubled)}
    for name, price, rivalry, size in (
        ("game", PRICE, RIVALRY, SIZE),
        ("no prices", 0.0, 0.0, 0.0),
    ):
        game = PruningGame(
            copy.deepcopy(doubled), example, price=price, rivalry=rivalry, size=size, rate=RATE
        )
        testbeds.fit(game, data.train, seed=seed, updates=PLAYED)
        found[f"{name}: units left"] = float(sum(game.left.values()))
        found[f"{name}: accuracy"] = accuracy(game.extract())
    share = found["game: units left"] / (2 * UNITS)
    cut = prune(doubled, example, to=min(1.0, share + 0.004), of=parameters).model
    testbeds.fit(cut, data.train, seed=seed, updates=PLAYED)
    found["magnitude: units left"] = float(len(next(cut.parameters())))
    found["magnitude: accuracy"] = accuracy(cut)
    return found


def _doubled(seed: int, data: "Digits") -> "nn.Module":
    """A trained network with every hidden unit twice, nearly alike, at half of its weight."""
    import torch

    from pointsman.claims import testbeds

    single = testbeds.mlp(64, UNITS, 10, seed=seed)
    testbeds.fit(single, data.train, seed=seed, updates=TRAINED)
    doubled = testbeds.mlp(64, 2 * UNITS, 10, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in doubled.named_parameters():
            once = single.get_parameter(name)
            if name == "2.bias":
                weight.copy_(once)
                continue
            both = torch.cat([once, once]) if name[0] == "0" else torch.cat([once, once], 1) / 2
            blur = torch.randn(both.shape, generator=generator)
            weight.copy_(both * (1 + BLUR * blur))  # twins that are exactly alike stay alike
    return doubled


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    vanished = all(figures["game: units left"] <= 0.6 * 2 * UNITS for figures in measurements)
    stay = all(figures["no prices: units left"] >= 0.99 * 2 * UNITS for figures in measurements)
    lost = mean(measurements, "before: accuracy") - mean(measurements, "game: accuracy")
    return vanished and stay and lost <= 0.02


CLAIM = Claim(
    slug="pruning-as-a-game",
    paper="Pruning as a Game: Equilibrium-Driven Sparsification of Neural Networks",
    year=2025,
    arxiv="",
    level="supernet",
    claim="Units that play for their place, each against the price of taking part, leave a network "
    "in which they are of no use, without being ranked.",
    baseline="The same training without prices; and a cut by magnitude to as many units, trained "
    "for as many updates after it.",
    criterion="Of 256 hidden units, each there twice, at least 40% vanish in every seed at a loss "
    "of at most 2 points of test accuracy in the mean, and without prices at most 1% do.",
    quick=quick,
    full=full,
    decide=decide,
    composition="channel groups · gates on units · projected ascent of each unit's utility · cut",
    entry="pointsman.supernet.pruning.PruningGame",
    key={
        "units left": "game: units left",
        "accuracy": "game: accuracy",
        "magnitude": "magnitude: accuracy",
        "before": "before: accuracy",
    },
)
