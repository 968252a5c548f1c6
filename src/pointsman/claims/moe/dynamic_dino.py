"""Dynamic-DINO: a trained feed-forward split into small experts, without a drop at the start.

Lu et al., "Dynamic-DINO: Fine-Grained Mixture of Experts Tuning for Real-time Open-Vocabulary
Object Detection" (2025, arXiv 2507.17436).

Each feed-forward of a trained detector is copied, and every copy is cut into hidden slices, which
are the experts. The router's row of a copy is repeated for its slices, so that they are chosen
together at first and add up to the feed-forward. Tuning then sets the slices apart. The composition
is `moe.systems.upcycled.dynamic_dino`, the part `moe.convert.split`.

What was settled:
- Splitting and the router's start are what is built; the detector is not here. The small vision
  model is one attention block over the 16 patches of a digit, under noise.
- Weights of a token sum to the number of slices, since equality at the start asks for it; the
  paper's scaling was not found. The bias on the way down is shared, not divided.
- Equal scores must be broken by copy: `top_k_slices` takes the first of equals. The rows "untied"
  (a router without repeated rows) and "sum to one" (the usual weights) show what goes wrong
  otherwise.
- Tuning of both goes on from the same trained network, with equal updates, rate and noise.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import torch

WIDTH, HIDDEN, COPIES, SLICES = 32, 64, 4, 2
UPDATES, TUNING, NOISE = 600, 300, 0.25


def quick() -> None:
    """The split layer equals the dense one at the start, and only with tied rows and full scale."""
    from functools import partial
    from math import comb

    import torch
    from torch import nn

    from pointsman.moe.convert import split
    from pointsman.moe.systems.upcycled import dynamic_dino
    from pointsman.select import top_k

    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)).double()
    x_TD = torch.randn(40, 8, dtype=torch.float64)
    x_TD[:3] = 0  # every score ties
    moe = dynamic_dino(mlp, copies=4, slices=2)
    y_TD, routing = moe(x_TD)

    def gap(output: torch.Tensor) -> float:
        return float((output - mlp(x_TD)).detach().abs().max())

    must(gap(y_TD) < 1e-12, "the split layer equals the dense one")
    copy_TK = routing.route.branches.reshape(40, 2) // 2
    must(bool((copy_TK[:, 0] == copy_TK[:, 1]).all()), "slices of one copy are chosen together")
    must(comb(8, 2) > 4, "more sub-networks can be reached than there are copies")
    usual = split(mlp, 4, 2, select=partial(top_k, k=2))
    must(gap(usual(x_TD)[0]) > 1e-3, "weights that sum to one halve the experts")
    moe.router.reset_parameters()  # type: ignore[operator]
    must(gap(moe(x_TD)[0]) > 1e-3, "rows that are not tied mix slices of different copies")


def full(seed: int) -> Figures:
    """Test loss before and after tuning: split, and dense with equal updates."""
    import copy

    import torch

    from pointsman.claims import testbeds
    from pointsman.moe.systems.upcycled import dynamic_dino

    data, dense = testbeds.digits(seed, noise=NOISE), _network(seed)
    clean = testbeds.digits(seed).train
    testbeds.fit(dense, clean, seed=seed, updates=UPDATES, noise=NOISE, loss=_loss_of)
    routed, untied = copy.deepcopy(dense), copy.deepcopy(dense)
    generator = torch.Generator().manual_seed(seed)
    for net in (routed, untied):
        net.feed_forward = dynamic_dino(
            net.feed_forward, copies=COPIES, slices=SLICES, generator=generator
        )
    untied.feed_forward.router.reset_parameters()
    found = {}
    for row, net in (("split", routed), ("dense", dense), ("untied", untied)):
        found[f"{row}: loss before tuning"] = _loss(net, data.test)
    apart = _logits(routed, data.test.x) - _logits(dense, data.test.x)
    found["split: largest change of a logit before tuning"] = float(apart.abs().max())
    for row, net in (("split", routed), ("dense", dense)):
        testbeds.fit(
            net, clean, seed=seed + 1000, updates=TUNING, noise=NOISE, loss=_loss_of, rate=5e-4
        )
        found[f"{row}: loss after tuning"] = _loss(net, data.test)
        found[f"{row}: accuracy after tuning"] = testbeds.accuracy(
            _logits(net, data.test.x), data.test.y
        )
    return found


def _network(seed: int) -> Any:
    """Patches of a digit, attention between them, a feed-forward, the mean, classes."""
    import torch
    from torch import nn

    class Vision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Linear(4, WIDTH)
            self.places = nn.Parameter(0.1 * torch.randn(16, WIDTH))
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
            self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
            self.feed_forward: nn.Module = nn.Sequential(
                nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)
            )
            self.head = nn.Linear(WIDTH, 10)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Logits, and the balancing loss."""
            tiles = x.reshape(-1, 4, 2, 4, 2).transpose(2, 3).reshape(len(x), 16, 4)
            h = self.patches(tiles) + self.places
            u = self.norms[0](h)
            h = h + self.attention(u, u, u, need_weights=False)[0]
            found = self.feed_forward(self.norms[1](h))
            y, loss = found if isinstance(found, tuple) else (found, x.new_zeros(()))
            logits = self.head(self.norms[2](h + y).mean(dim=1))
            return logits, loss if isinstance(loss, torch.Tensor) else loss.loss

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Vision()


def _loss_of(net: "torch.nn.Module", x: "torch.Tensor", y: "torch.Tensor") -> "torch.Tensor":
    from torch.nn.functional import cross_entropy

    logits, balance = net(x)
    loss: torch.Tensor = cross_entropy(logits, y) + balance
    return loss


def _logits(net: Any, x: "torch.Tensor") -> "torch.Tensor":
    import torch

    with torch.no_grad():
        found: torch.Tensor = net(x)[0]
    return found


def _loss(net: Any, part: Any) -> float:
    from torch.nn.functional import cross_entropy

    return float(cross_entropy(_logits(net, part.x), part.y))


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    largest = "split: largest change of a logit before tuning"
    same = all(figures[largest] < 1e-5 for figures in measurements)
    name = "loss after tuning"
    return same and mean(measurements, f"split: {name}") <= mean(measurements, f"dense: {name}")


CLAIM = Claim(
    slug="dynamic-dino",
    paper="Dynamic-DINO: Fine-Grained Mixture of Experts Tuning for Real-time Open-Vocabulary "
    "Object Detection",
    year=2025,
    arxiv="2507.17436",
    level="moe",
    claim="A trained feed-forward, copied and cut into small experts under a router that ties the "
    "slices of a copy, starts where the dense one was and is tuned to a better end.",
    baseline="The same trained network, dense, tuned with equal updates; before tuning, also the "
    "same experts under a router that is not tied.",
    criterion="On noisy digits, with 4 copies of 2 slices: in every seed no logit changes by 1e-5 "
    "or more when the trained feed-forward is split, and after equal updates of tuning the test "
    "loss, in the mean over the seeds, is at most that of the dense network.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.dynamic_dino",
    composition="linear router (tied rows) · top-2 of slices · sliced copies of a trained "
    "feed-forward · switch loss",
    key={
        "split": "split: loss after tuning",
        "dense": "dense: loss after tuning",
        "untied, before": "untied: loss before tuning",
        "split, before": "split: loss before tuning",
    },
)
