"""Skills that a query asks for, and how good each model is at each.

Symbolic-MoE (2503.05641) has a language model name the skills of each question, scores a model up
or down for each skill of the questions it got right or wrong, and recruits by the sum over a new
question's skills. Here nothing is asked: the skills of a query are its words and phrases, weighed
as the encoder weighs them, or, where there is no text, the directions of its vector in which it
stands out. A profile is the mean deviation of a model on queries with the skill, drawn towards zero
where few have it (the authors drop keywords seen once). What a query's skills say is averaged
and stretched by one factor for all models. Both amounts are chosen with each query left out of the
profiles it is judged by.

Recruiting several models for one query and having them vote is not a router's business.

Legend: N queries, U distinct ones, S skills, M models, L distinct ones, D features.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.features.features import Features
from pointsman.pool.routers.arithmetic import dot
from pointsman.pool.routers.costs import Costs
from pointsman.pool.routers.design import Design
from pointsman.pool.routers.router import Prediction
from pointsman.pool.routers.state import check_width, costs_of, written
from pointsman.pool.routers.table import Array, Table, tabulate
from pointsman.pool.saving import Arrays, Plain, inside, nested

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)  # times the typical weight of a skill in a query
STANDS_OUT = 1.0  # standard deviations along a direction
ROWS_AT_ONCE = 256


class SkillProfile:
    """A profile of skills for each model.

    Args:
        rarest: skills that fewer distinct training queries have are left out.
    """

    name = "skill-profile"
    title = "Skill profiles"

    def __init__(self, *, rarest: int = 3) -> None:
        self.rarest = rarest

    def fit(self, features: Features, quality: Array, cost: Array) -> Self:
        """As `pointsman.pool.routers.router.Router` has it.

        Raises:
            InputError: `rarest` below 1.
        """
        if self.rarest < 1:
            raise InputError(f"rarest must be 1 or more, got {self.rarest}")
        table = tabulate(features, quality)
        self.design_ = Design().fit(table.features)
        self.deviates_ = _spread(self.design_.transform(table.features))
        self.words_ = 0 if table.features.sparse is None else table.features.sparse.shape[1]
        skills = self._skills(table.features)
        common = np.bincount(skills.indices, minlength=skills.shape[1]) >= self.rarest
        skills = skills.multiply(common).tocsr()
        skills.eliminate_zeros()
        profile, stretch = _profile(skills, table)
        profile = profile * stretch * table.trust()
        # A skill's own weight stands beside what it says, so that one product gives both.
        self.profile_ = np.column_stack([profile[:, table.model], common.astype(np.float64)])
        self.mean_ = table.mean[table.model]
        self.costs_ = Costs().fit(features, cost)
        return self

    def predict(self, features: Features) -> Prediction:
        """As `pointsman.pool.routers.router.Router` has it."""
        said = self._said(features)
        weight = said[:, -1:]
        average = np.divide(said[:, :-1], weight, out=np.zeros_like(said[:, :-1]), where=weight > 0)
        return Prediction(self.mean_ + average, self.costs_.predict(features))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        plain, arrays = nested({"design": self.design_.to_state()})
        own = {"profile": self.profile_, "mean": self.mean_, "deviates": self.deviates_}
        kept, learned = written({"rarest": self.rarest}, {**own, **arrays}, self.costs_)
        return {**kept, **plain, "words": self.words_}, learned

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        self = cls(**plain["keywords"])
        self.design_ = Design.from_state(plain["design"], inside("design", arrays))
        self.words_ = plain["words"]
        self.profile_, self.mean_ = np.asarray(arrays["profile"]), np.asarray(arrays["mean"])
        self.deviates_ = np.asarray(arrays["deviates"])
        self.costs_ = costs_of(plain, arrays)
        return self

    def _skills(self, features: Features) -> Any:
        """(N, S) sparse, how much of each skill a query asks for; not negative."""
        from scipy.sparse import csr_matrix

        if self.words_:
            return abs(features.sparse.tocsr()).astype(np.float64)
        return csr_matrix(self._directions(features))

    def _directions(self, features: Features) -> Array:
        """(N, S) how far a query stands out along each direction, one way and the other."""
        away = self.design_.transform(features) * self.deviates_
        both = np.concatenate([away, -away], axis=1)
        return np.maximum(both - STANDS_OUT, 0.0)

    def _said(self, features: Features) -> Array:
        """(N, M + 1) profiles weighed by the skills of each query, and their weight."""
        if not self.words_:
            return dot(self._directions(features), np.ascontiguousarray(self.profile_.T))
        found = 0 if features.sparse is None else features.sparse.shape[1]
        check_width(found, self.words_)
        sparse = features.sparse.tocsr()
        return _weighed(np.abs(sparse.data), sparse.indices, sparse.indptr, self.profile_)


def _weighed(data: Any, indices: Any, start: Any, profile: Array) -> Array:
    """(N, M + 1) rows of a sparse matrix times the profile, each summed by itself.

    Scipy's product gives as much; for a single row its checks would take most of the time.
    """
    said = np.zeros((len(start) - 1, profile.shape[1]))
    for first in range(0, len(said), ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, len(said))
        part = slice(start[first], start[last])
        each = data[part, None] * profile[indices[part]]
        begin = start[first:last] - start[first]
        some = np.flatnonzero(np.diff(start[first : last + 1]))
        if len(some):
            said[first + some] = np.add.reduceat(each, begin[some], axis=0)
    return said


def _spread(x: Array) -> Array:
    """(D + 1,) what makes each feature's variance 1; zero for constant ones."""
    variance = (x * x).mean(axis=0)
    scale: Array = np.where(variance > 1e-12, 1 / np.sqrt(np.maximum(variance, 1e-12)), 0.0)
    return scale


def _profile(skills: Any, table: Table) -> tuple[Array, float]:
    """(S, L) profiles, and how far to stretch what they say on average."""
    typical = float(skills.data.mean()) if skills.nnz else 1.0
    found = []
    for strength in STRENGTHS:
        expected = _left_out(skills, table, strength * typical)
        agree = (table.count * table.deviation * expected).sum()
        size = (table.count * expected * expected).sum()
        stretch = max(0.0, float(agree / size)) if size > 0 else 0.0
        found.append((table.error(stretch * expected), -strength, stretch))
    _, strength, stretch = min(found)
    sums, weight = _sums(skills, table)
    profile: Array = sums / (weight - strength * typical)  # the strength's sign was turned
    return profile, stretch


def _sums(skills: Any, table: Table) -> tuple[Array, Array]:
    """(S, L) weighted deviations of the queries with each skill, and their weight."""
    transposed = skills.T.tocsr()
    sums: Array = np.asarray(transposed @ (table.count * table.deviation))
    weight: Array = np.asarray(transposed @ table.count)
    return sums, weight


def _left_out(skills: Any, table: Table, strength: float) -> Array:
    """(U, L) what the skills of each query say on average, without that query."""
    sums, weight = _sums(skills, table)
    row = np.repeat(np.arange(skills.shape[0]), np.diff(skills.indptr))
    total = np.bincount(row, skills.data, minlength=len(table))
    expected = np.zeros_like(table.deviation)
    for at in range(expected.shape[1]):
        own = skills.data * table.count[row, at]
        rest = sums[skills.indices, at] - own * table.deviation[row, at]
        said = skills.data * rest / (weight[skills.indices, at] - own + strength)
        expected[:, at] = np.bincount(row, said, minlength=len(table))
    return np.divide(
        expected, total[:, None], out=np.zeros_like(expected), where=total[:, None] > 0
    )
