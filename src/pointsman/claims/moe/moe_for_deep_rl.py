"""Mixtures of experts in value networks: a soft mixture instead of the dense layer.

Obando-Ceron et al., "Mixtures of Experts Unlock Parameter Scaling for Deep RL" (2024, arXiv
2402.08609).

The dense layer after a convolutional encoder becomes a soft mixture of experts over the places of
the feature map; losses and training of the agent stay. Slots are softmax means over tokens, answers
softmax means over slots. The composition is `moe.systems.vision.soft_value_network`.

What was settled:
- Atari curves cannot be shown in seconds. What is run is fitted Q-iteration on a 5 x 5 grid world
  seen as an image: an agent, a goal (+1, ends) and a pit (-1, ends), discount 0.9, targets of a
  copy that is renewed every 50 updates; 600 updates on transitions drawn from all states.
- Compared by the mean discounted return of the greedy policy within 15 steps, from the same 2,000
  starts: a dense layer of 16 units, one widened until it has as many weights as the soft mixture of
  8 experts, and that mixture. The best possible return is shown.
- The paper's claim is of growing numbers of experts in large agents. This says of it only that the
  mixture is no worse than the wide layer in this little world.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor, nn

SIDE, ACTIONS, CHANNELS, DISCOUNT = 5, 4, 16, 0.9
UPDATES, BATCH, RATE, RENEWED = 600, 256, 2e-3, 50
EXPERTS, HIDDEN, DENSE = 8, 32, 16
STARTS, HORIZON = 2000, 15


def quick() -> None:
    """Both softmaxes sum to one, tokens permute, equal experts are one of the slots."""
    import torch
    from torch import nn
    from torch.testing import assert_close

    from pointsman.moe import FeedForwardExperts, SoftMoE
    from pointsman.moe.systems.vision import soft_value_network

    torch.manual_seed(0)
    x = torch.randn(3, 6, 5, dtype=torch.float64)
    soft = SoftMoE(5, FeedForwardExperts(4, 5, 7, activation="relu"), slots=2).double()
    y, slots = soft(x)
    ones = torch.ones(3, 8, dtype=torch.float64)
    assert_close(slots.dispatch.sum(dim=1), ones)
    assert_close(slots.combine.sum(dim=2), ones[:, :6])
    order = torch.randperm(6)
    assert_close(soft(x[:, order])[0], y[:, order])
    with torch.no_grad():
        for weight in soft.experts.parameters():
            weight.copy_(weight[:1].expand_as(weight).clone())
    y, slots = soft(x)
    means = (slots.dispatch.transpose(1, 2) @ x).reshape(24, 5)
    offsets = torch.tensor([0, 24, 24, 24, 24])
    assert_close(y, slots.combine @ soft.experts(means, offsets).reshape(3, 8, 5))
    net = soft_value_network(nn.Conv2d(3, 6, 3, padding=1), 6, 25, ACTIONS, 8, hidden=5)
    must(net.soft.slots == 4, "25 places at capacity 1 are 4 slots for each of 8 experts")
    must(net(torch.randn(2, 3, 5, 5)).shape == (2, ACTIONS), "a value for each action")


def _image(state: "Tensor") -> "Tensor":
    """(n, 3) places of agent, goal and pit to (n, 3, SIDE, SIDE) of zeros and ones."""
    from torch.nn import functional

    return functional.one_hot(state, SIDE * SIDE).float().reshape(-1, 3, SIDE, SIDE)


def _step(state: "Tensor", action: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
    """Next state, reward and whether it ended."""
    import torch

    moves = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])
    row, column = state[:, 0] // SIDE, state[:, 0] % SIDE
    row = (row + moves[action, 0]).clamp(0, SIDE - 1)
    column = (column + moves[action, 1]).clamp(0, SIDE - 1)
    following = state.clone()
    following[:, 0] = row * SIDE + column
    goal, pit = following[:, 0] == following[:, 1], following[:, 0] == following[:, 2]
    return following, goal.float() - pit.float(), goal | pit


def _states(count: int, generator: object) -> "Tensor":
    """(count, 3): three different places each."""
    import torch

    order = torch.rand(count, SIDE * SIDE, generator=generator).argsort(dim=1)  # type: ignore[call-overload]
    states: Tensor = order[:, :3]
    return states


def _fit(net: "nn.Module", seed: int) -> None:
    """Fitted Q-iteration: targets from a copy that is renewed now and then."""
    from copy import deepcopy

    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), RATE)
    for update in range(UPDATES):
        if update % RENEWED == 0:
            target = deepcopy(net)
        state = _states(BATCH, generator)
        action = torch.randint(ACTIONS, (BATCH,), generator=generator)
        following, reward, ended = _step(state, action)
        with torch.no_grad():
            best = target(_image(following)).max(dim=1).values
            wanted = reward + DISCOUNT * torch.where(ended, 0.0, best)
        value = net(_image(state)).gather(1, action[:, None]).squeeze(1)
        optimiser.zero_grad()
        functional.smooth_l1_loss(value, wanted).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _return(net: "nn.Module", seed: int) -> float:
    """Mean discounted return of the greedy policy."""
    import torch

    state = _states(STARTS, torch.Generator().manual_seed(1000 + seed))
    total, running = torch.zeros(STARTS), torch.ones(STARTS)
    with torch.no_grad():
        for at in range(HORIZON):
            state, reward, ended = _step(state, net(_image(state)).argmax(dim=1))
            total += DISCOUNT**at * running * reward
            running = running * ~ended
    return float(total.mean())


def _best_return(seed: int) -> float:
    """Of the shortest way, which a lone pit never makes longer but where all three are in line."""
    import torch

    state = _states(STARTS, torch.Generator().manual_seed(1000 + seed))
    row, column = state // SIDE, state % SIDE
    steps = (row[:, 0] - row[:, 1]).abs() + (column[:, 0] - column[:, 1]).abs()

    def between(line: "Tensor", along: "Tensor") -> "Tensor":
        same = (line[:, 0] == line[:, 1]) & (line[:, 0] == line[:, 2])
        low, high = along[:, :2].amin(dim=1), along[:, :2].amax(dim=1)
        return same & (low < along[:, 2]) & (along[:, 2] < high)

    steps = steps + 2 * (between(row, column) | between(column, row)).long()
    return float((DISCOUNT ** (steps - 1).float()).mean())


def full(seed: int) -> Figures:
    """Return and weights of a dense layer, a wide one, and a soft mixture."""
    import torch
    from torch import nn

    from pointsman.moe.systems.vision import soft_value_network

    places = SIDE * SIDE

    def encoder() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU())

    def dense(units: int) -> nn.Sequential:
        layers = nn.Linear(places * CHANNELS, units), nn.ReLU(), nn.Linear(units, ACTIONS)
        return nn.Sequential(encoder(), nn.Flatten(), *layers)

    def weights(net: nn.Module) -> int:
        return sum(weight.numel() for weight in net.parameters())

    torch.manual_seed(seed)
    soft = soft_value_network(encoder(), CHANNELS, places, ACTIONS, EXPERTS, hidden=HIDDEN)
    units = DENSE
    while weights(dense(units)) < weights(soft):
        units += 1
    torch.manual_seed(seed)
    nets = {"dense": dense(DENSE), "wide dense": dense(units), "soft mixture": soft}
    found = {}
    for name, net in nets.items():
        _fit(net, seed)
        found[f"{name}: return"] = _return(net, seed)
        found[f"{name}: weights"] = float(weights(net))
    return found | {"best possible: return": _best_return(seed)}


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    return mean(measurements, "soft mixture: return") >= mean(measurements, "wide dense: return")


CLAIM = Claim(
    slug="moe-for-deep-rl",
    paper="Mixtures of Experts Unlock Parameter Scaling for Deep RL",
    year=2024,
    arxiv="2402.08609",
    level="moe",
    claim="A soft mixture of experts makes better use of further weights in a value network than a "
    "wider dense layer.",
    baseline="The dense layer widened until it has as many weights; equal encoder, updates, data.",
    criterion="After fitted Q-iteration on a 5 x 5 grid world of images, in the mean over the "
    "seeds: the greedy policy of the soft mixture of 8 experts has at least the return of the wide "
    "dense layer.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.soft_value_network",
    composition="soft mixture over the places of a feature map · feed-forward experts, 4 slots "
    "each",
    note="All three are far from the best policy after so few updates; the mixture lies between "
    "the dense layer and the wide one, close to the latter.",
    key={
        "soft mixture": "soft mixture: return",
        "wide dense": "wide dense: return",
        "dense": "dense: return",
        "best": "best possible: return",
    },
)
