"""A cascade on scikit-learn's digits: a linear model first, a large network where it is unsure.

Four parts of the data: one trains the members, one sets the thresholds, one certifies the pick,
and what is reported comes from the last, which nothing else has seen.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from pointsman.cost import compare_latency
from pointsman.pool import Cascade

X, y = load_digits(return_X_y=True)
X = X / 16
order = np.random.default_rng(0).permutation(len(y))
train, held, calibration, test = np.split(order, [600, 800, 1400])

members = [
    LogisticRegression(max_iter=500).fit(X[train], y[train]),
    MLPClassifier((1024, 512), tol=1e-3, random_state=0).fit(X[train], y[train]),
]
cascade = Cascade(members).fit(X[held], y[held])

frontier = cascade.frontier(X[calibration], y[calibration])
print(f"{'knob':>16}  accuracy  {frontier.unit} per input")
for point in frontier.points:
    print(f"{point.knob:>16}  {point.quality:8.3f}  {point.cost:.4f}")

pick = frontier.pick(max_drop=0.02, confidence=0.95)
print()
print(pick.certificate.words())
print(f"saved on the calibration part: {pick.saved:.0%}")

cheap = cascade.at(pick.knob)
answer = cheap.answer(X[test])
counted = answer.route.cost(cascade.costs_).mean()
measured = {
    "cascade": lambda: cheap.predict(X[test]),
    "last member": lambda: members[-1].predict(X[test]),
}
print(f"test part: accuracy {cheap.score(X[test], y[test]):.3f} at {counted}; ", end="")
print(f"the last member alone: {members[-1].score(X[test], y[test]):.3f}", end="")
print(f"; {float((answer.stage == 0).double().mean()):.0%} never reached it")
# Counted costs are those of large batches; a few inputs at a time, each call has its own price.
for name, latency in compare_latency(measured).items():
    print(f"{name}: {latency.median / len(test)} per input, measured from end to end")
