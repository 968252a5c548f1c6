"""Early exits on scikit-learn's digits: a small network with two heads on the way.

Trained with the joint loss of all exits; the pick is certified on inputs that were not trained on
and reported on others again.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from pointsman.depth import EarlyExit, joint_loss

torch.manual_seed(0)
X, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
images = X.float().reshape(-1, 1, 8, 8) / 16
train, calibration, test = torch.randperm(len(y)).split([800, 600, 397])


def block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, 3, stride=stride, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU())


backbone = nn.Sequential(
    block(1, 16),
    block(16, 32, 2),
    block(32, 64, 2),
    block(64, 64),
    nn.Flatten(),
    nn.Linear(256, 10),
)
net = EarlyExit(backbone, at=[1, 2], example=images[:2])
optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
for _ in range(30):
    for rows in train[torch.randperm(len(train))].split(50):
        optimizer.zero_grad()
        joint_loss(net(images[rows]), y[rows]).backward()
        optimizer.step()

frontier = net.frontier(images[calibration], y[calibration])
print(f"threshold  accuracy  {frontier.unit} per input")
for point in frontier.points:
    print(f"{point.knob:9}  {point.quality:8.3f}  {point.cost:.3f}")

pick = frontier.pick(max_drop=0.02, confidence=0.95)
print()
print(pick.certificate.words())
print(f"saved on the calibration part: {pick.saved:.0%}")

answer = net.run(images[test], pick.knob)
cost = answer.route.cost(net.stage_costs(images[:1]).per_stage(pick.knob)).mean()
accuracy = (answer.output.argmax(dim=1) == y[test]).float().mean()
shares = answer.stage.bincount(minlength=len(net.exits)) / len(test)
print(f"test part: accuracy {accuracy:.3f} at {cost}; answered by exit: ", end="")
print(", ".join(f"{name}: {share:.0%}" for name, share in zip(net.exits, shares, strict=True)))
