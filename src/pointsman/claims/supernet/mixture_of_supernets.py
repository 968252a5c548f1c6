"""Mixture-of-supernets: a subnet's weights are a mean of experts' that its genotype decides.

Jawahar et al., "Mixture-of-Supernets: Improving Weight-Sharing Supernet Training with
Architecture-Routed Mixture-of-Experts" (2023, arXiv 2306.04845).

Each layer holds m sets of weights at full size; a small router reads the genotype and gives the
shares of the sets, for the layer or for each output unit; their mean is cut to the subnet's size.
So subnets share weights only as far as the routers want, and an extracted subnet costs no more. The
part is `WeightExperts` in `supernet.training`.

What was settled:
- The space of slices (64-W1-W2-10, 36 networks on noisy digits), made elastic by `Width`. Experts
  for all three layers, two of them, with one share for the layer (by unit is an option).
- One uniform subnet an update, 400 updates, the same batches for all columns, two runs for each
  seed. The router learns at the rate of the rest.
- The gap is the test accuracy of each network trained alone (the table) minus that with inherited
  weights, averaged over the 36. A mixture has about twice the weights of the plain supernet; no
  column at equal weights is shown, because a wider plain supernet would change the subnets.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.supernet.supernet import Supernet

UPDATES, RUNS, RATE = 400, 2, 2e-3
LAYERS = ("body.0", "body.2", "body.4")
COLUMNS = {"plain": 0, "mixture": 2}  # experts


def _supernet(seed: int, experts: int) -> "Supernet":
    """The space of slices; without experts the plain one."""
    import torch

    from pointsman.claims.architectures import WIDTHS
    from pointsman.claims.testbeds import mlp
    from pointsman.supernet.elastic import Width
    from pointsman.supernet.making import make_elastic
    from pointsman.supernet.supernet import Supernet
    from pointsman.supernet.training import WeightExperts

    widths = [Width("0", counts=WIDTHS), Width("2", counts=WIDTHS)]
    net = make_elastic(mlp(64, 64, 64, 10, seed=seed), torch.zeros(2, 64), widths)
    if not experts:
        return net
    return Supernet(WeightExperts(net.body, LAYERS, experts=experts, seed=seed))


def quick() -> None:
    """One expert is the plain supernet; merged weights are the weighted sum of the experts'."""
    import torch
    from torch.testing import assert_close

    plain, one, two = (_supernet(0, experts) for experts in (0, 1, 2))
    x = torch.rand(6, 64, generator=torch.Generator().manual_seed(0))
    for genotype in ((0, 0), (2, 5), (5, 5)):
        for net in (plain, one, two):
            net.use(genotype)
        assert_close(one(x), plain(x), rtol=0, atol=1e-6)
        alone = two.extract(genotype)
        assert_close(alone(x), two(x), rtol=0, atol=1e-6)
        must(not torch.allclose(two(x), plain(x)), "two experts make another network")
        sizes = [len(weight) for name, weight in alone.named_parameters() if "bias" in name]
        widths = [int(value) for value in two.space.decode(genotype).values()]
        must(sizes == [*widths, 10], f"and one of the subnet's size, got {sizes}")
    mixture = two.body
    assert isinstance(mixture, torch.nn.Module)
    features = mixture.features()  # type: ignore[operator]
    must(features.tolist() == [0, 0, 0, 0, 0, 1] * 2, "the router reads the options in force")


def full(seed: int) -> Figures:
    """Mean gap between networks alone and subnets with inherited weights, plain and mixed."""
    from statistics import fmean

    from pointsman.claims.architectures import NOISE, noisy_digits, slice_table
    from pointsman.supernet.training import (
        InheritedQuality,
        RandomBatches,
        UniformPaths,
        ranking,
        train_supernet,
    )

    data = noisy_digits(seed)
    truth = {genotype: test for genotype, (_, test) in slice_table(seed).items()}
    found: dict[str, list[float]] = {}
    for run in range(RUNS):
        own = seed * RUNS + run
        for name, experts in COLUMNS.items():
            net = _supernet(own, experts)
            batches = RandomBatches(data.train.x, data.train.y, seed=own, noise=NOISE)
            paths = UniformPaths(net.space, seed=own)
            train_supernet(net, batches, paths, updates=UPDATES, rate=RATE)
            agreement, values = ranking(InheritedQuality(net, data.test.x, data.test.y), truth)
            gap = fmean(truth[genotype] - values[genotype] for genotype in truth)
            smallest = [g for g in truth if 0 in g]
            low = fmean(truth[genotype] - values[genotype] for genotype in smallest)
            found.setdefault(f"{name}: gap", []).append(gap)
            found.setdefault(f"{name}: gap where a width is 8", []).append(low)
            found.setdefault(f"{name}: Kendall", []).append(agreement.kendall)
            weights = sum(weight.numel() for weight in net.parameters())
            found.setdefault(f"{name}: parameters in training", []).append(float(weights))
    return {name: fmean(values) for name, values in found.items()}


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    return mean(measurements, "mixture: gap") < mean(measurements, "plain: gap")


CLAIM = Claim(
    slug="mixture-of-supernets",
    paper="Mixture-of-Supernets: Improving Weight-Sharing Supernet Training with "
    "Architecture-Routed Mixture-of-Experts",
    year=2023,
    arxiv="2306.04845",
    level="supernet",
    claim="Weights that are a mean of experts', routed by the genotype, bring subnets nearer to "
    "what they reach when trained alone than plainly shared weights do.",
    baseline="The plain supernet with sliced weights, with equal updates and batches.",
    criterion="The gap in test accuracy between networks trained alone and subnets with inherited "
    "weights, averaged over the 36 networks, two runs and the seeds, is smaller with two experts a "
    "layer than without.",
    quick=quick,
    full=full,
    decide=decide,
    composition="elastic widths · experts of weights routed by the genotype · uniform paths",
    entry="pointsman.supernet.training.WeightExperts",
    key={"mixture": "mixture: gap", "plain": "plain: gap"},
    note="Both were trained for as many updates as one network alone; longer training was "
    "not tried.",
)
