"""One's own network, trained once, searched, and served at a certified cost.

On scikit-learn's digits: a small ConvNet becomes elastic in widths and depth. Its subnets
are searched on a validation part; the pick is certified on inputs that neither trained nor chose
anything, saved, and reported on others again.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn

from pointsman.supernet import (
    count_mflops,
    genotype_of,
    load_subnet,
    make_elastic,
    measure_subnets,
    recalibrate,
    save_subnet,
    subnet_frontier,
)
from pointsman.supernet.elastic import Depth, Width
from pointsman.supernet.search import Problem, front, search
from pointsman.supernet.search.engines import front_search
from pointsman.supernet.training import (
    InheritedQuality,
    RandomBatches,
    SandwichPaths,
    train_supernet,
)

torch.manual_seed(0)
X, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
images = X.float().reshape(-1, 1, 8, 8) / 16
train, validation, calibration, test = torch.randperm(len(y)).split([800, 200, 500, 297])


class Block(nn.Module):
    """x + what two convolutions make of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.outer = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.outer(self.norm(self.inner(x)).relu())
        return out


model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Sequential(*(Block(32) for _ in range(2))),
    nn.AdaptiveAvgPool2d(2),
    nn.Flatten(),
    nn.Linear(128, 10),
)
elastic = [Depth("6", counts=(0, 1, 2)), Width(shares=(0.25, 0.5, 0.75, 1))]

net = make_elastic(model, images[:2], elastic)
drawn = RandomBatches(images[train], y[train], size=64)
train_supernet(net, drawn, SandwichPaths(net.space, between=1), updates=500, rate=3e-3, distil=True)
mflops = count_mflops(net, images[:1])
batches = [images[train[:300]]]
quality = InheritedQuality(net, images[validation], y[validation], recalibrate=batches)
found = front(search(Problem(net.space, quality, mflops), front_search, evaluations=60))
chosen = [evaluation.genotype for evaluation in found]
frontier = subnet_frontier(
    net, chosen, images[calibration], y[calibration], mflops, batches=batches
)
pick = frontier.pick(max_drop=0.02, confidence=0.95)

print(net.space)
print("subnet                     accuracy  MFLOPs")
for point in frontier.points:
    print(f"{point.knob:25}  {point.quality:8.3f}  {point.cost:.4f}")
print()
print(pick.certificate.words())
print(f"saved on the calibration part: {pick.saved:.0%}")

genotype = genotype_of(str(pick.knob))
subnet = net.extract(genotype)
recalibrate(subnet, batches)
with tempfile.TemporaryDirectory() as folder:
    save_subnet(f"{folder}/subnet", net, genotype, subnet=subnet)
    subnet, about = load_subnet(f"{folder}/subnet", net)
whole = tuple(len(choice.options) - 1 for choice in net.space.choices)
small, large = measure_subnets(net, images[:64], [genotype, whole])
accuracy = (subnet.eval()(images[test]).argmax(dim=1) == y[test]).float().mean()
print(f"test part: accuracy {accuracy:.3f} with {about['choices']}")
print(f"time of 64 images: {small.median}, the whole network: {large.median}")
