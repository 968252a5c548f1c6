"""The history of a search as an optuna study: durable, resumable, shared by processes.

One trial an evaluation, written whole when the evaluation is done: its options as parameters, its
quality and cost as the two values, so that optuna's own tools (`study.best_trials`, the dashboard)
read it. An evaluation that failed is a failed trial that says why.

Before a genotype is evaluated it is claimed, in a table beside optuna's. A claim can be had once,
and it passes on only when the process that has it is gone, so processes that share a study never
evaluate a genotype twice. Processes that run the same engine and seed on one study divide each
batch among themselves and come to the same history as one process alone.
"""

import contextlib
import hashlib
import math
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pointsman.errors import InputError, reason
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.search.run import evaluate
from pointsman.supernet.search.studies import Presence, opened
from pointsman.supernet.space import Genotype, Space

if TYPE_CHECKING:
    import optuna

NAME = "pointsman"
LOOK = (0.05, 1.0)  # seconds between looks at what other processes are doing: first and most

# (problem, genotypes as they are asked for) -> their evaluations as they are done, in any order
Evaluator = Callable[[Problem, Iterable[Genotype]], Iterable[Evaluation]]


def one_by_one(problem: Problem, genotypes: Iterable[Genotype]) -> Iterator[Evaluation]:
    """In this process."""
    return (evaluate(problem, genotype) for genotype in genotypes)


class History:
    """What is known of the genotypes of one space, kept in a study.

    A context manager; `close` gives unfinished claims back.

    Args:
        space: whose genotypes are evaluated.
        store: path of an SQLite file, made if it is not there, or a postgresql:// URL.
        unit: of the costs.
        about: further facts on which evaluations depend, such as a digest of weights and data.
        name: of the study in its store.

    Raises:
        InputError: a package is missing, the store cannot be used (see `studies.opened`), or the
            study is of another space, unit or facts.
    """

    def __init__(
        self,
        space: Space,
        store: str | Path,
        *,
        unit: str = "MFLOPs",
        about: Mapping[str, str] | None = None,
        name: str = NAME,
    ) -> None:
        self.space, self.store = space, str(store)
        facts = {"space": space.digest, "unit": unit, **(about or {})}
        with opened(store) as (storage, presence):
            self._storage = storage
            self.study = _study(storage, name, unit, facts, space, self.store)
            self._claims = _Claims(storage.engine, presence, self.study.study_name)
        self._began: dict[Genotype, datetime] = {}

    def evaluations(self) -> list[Evaluation]:
        """All that is known, by whichever process, in the order in which it was written.

        Raises:
            InputError: the study cannot be read, or a trial of it is not what was written.
        """
        with _readable(self.store):
            trials = self.study.get_trials(deepcopy=False)
        written = [t for t in trials if t.state.is_finished() and "genotype" in t.user_attrs]
        return [_evaluation(trial, self.space, self.store) for trial in written]

    def evaluate(
        self, problem: Problem, genotypes: Sequence[Genotype], by: Evaluator = one_by_one
    ) -> Iterator[Evaluation]:
        """Evaluations of all of them, as they are done: here, or by another process of the study.

        Args:
            problem: of this space.
            genotypes: each once; what is known already is not evaluated again.
            by: where those that this process claims are evaluated.

        Raises:
            InputError: the study cannot be read or written.
        """
        waiting, pause = dict.fromkeys(genotypes), LOOK[0]
        try:
            while waiting:
                before = len(waiting)
                for each in by(problem, self._claimed(waiting)):
                    self._write(each)
                    yield each
                yield from self._done_elsewhere(waiting)
                pause = LOOK[0] if len(waiting) < before else min(2 * pause, LOOK[1])
                if waiting:
                    time.sleep(pause)
        finally:
            self._give_back()

    def sharing(self, by: Evaluator = one_by_one) -> Evaluator:
        """`evaluate` as `search` takes it.

        Args:
            by: where the genotypes that this process claims are evaluated.
        """
        return lambda problem, genotypes: self.evaluate(problem, tuple(genotypes), by)

    def close(self) -> None:
        """Give unfinished claims back and leave the study."""
        self._give_back()
        self._claims.close()
        self._storage.remove_session()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _claimed(self, waiting: dict[Genotype, None]) -> Iterator[Genotype]:
        """Those that nobody has claimed, claimed one at a time when they are asked for."""
        for genotype in list(waiting):
            with _readable(self.store):
                got = self._claims.take(genotype)
            if got == "inherited" and genotype in self._known():
                continue  # who had claimed it wrote it, and ended before we looked
            if got:
                del waiting[genotype]
                self._began[genotype] = datetime.now()
                yield genotype

    def _known(self) -> dict[Genotype, Evaluation]:
        return {each.genotype: each for each in self.evaluations()}

    def _done_elsewhere(self, waiting: dict[Genotype, None]) -> Iterator[Evaluation]:
        known = self._known() if waiting else {}
        for genotype in [genotype for genotype in waiting if genotype in known]:
            del waiting[genotype]
            yield known[genotype]

    def _write(self, each: Evaluation) -> None:
        from optuna.distributions import CategoricalDistribution
        from optuna.trial import TrialState, create_trial

        options = self.space.decode(each.genotype)
        of = {choice.name: CategoricalDistribution(choice.options) for choice in self.space.choices}
        facts = {"genotype": list(each.genotype), "cost": each.cost, "failure": each.failure}
        trial = create_trial(
            state=TrialState.FAIL if each.failed else TrialState.COMPLETE,
            values=None if each.failed else [each.quality, each.cost],
            params=options,
            distributions={name: of[name] for name in options},
            user_attrs=facts,
            intermediate_values=dict(enumerate(each.curve)),
        )
        trial.datetime_start = self._began.pop(each.genotype)
        trial.datetime_complete = datetime.now()
        with _readable(self.store):
            self.study.add_trial(trial)

    def _give_back(self) -> None:
        if self._began:
            self._claims.release(self._began)
            self._began.clear()


class _Claims:
    """Who evaluates what: one row a genotype, which is there from then on."""

    def __init__(self, engine: Any, presence: Presence, study: str) -> None:
        from sqlalchemy import text

        self.engine, self.presence, self.study = engine, presence, study
        self.owner = secrets.randbelow(2**62)
        with engine.begin() as session:
            session.execute(
                text(
                    "CREATE TABLE IF NOT EXISTS pointsman_claims (study VARCHAR(512), "
                    "genotype VARCHAR(64), owner BIGINT, PRIMARY KEY (study, genotype))"
                )
            )
        presence.enter(self.owner)

    def take(self, genotype: Genotype) -> str:
        """ "new" or "inherited" from a process that is gone; "" if another process has it."""
        row = {"study": self.study, "genotype": _key(genotype), "owner": self.owner}
        if self._changes(
            "INSERT INTO pointsman_claims (study, genotype, owner) "
            "VALUES (:study, :genotype, :owner) ON CONFLICT DO NOTHING",
            row,
        ):
            return "new"
        last = self._owner(row)
        if last is None or last == self.owner or self.presence.alive(last):
            return ""
        return "inherited" if self._changes(
            "UPDATE pointsman_claims SET owner = :owner "
            "WHERE study = :study AND genotype = :genotype AND owner = :last",
            {**row, "last": last},
        ) else ""  # fmt: skip

    def release(self, genotypes: Iterable[Genotype]) -> None:
        """Give claims back whose genotypes were not evaluated."""
        for genotype in genotypes:
            self._changes(
                "DELETE FROM pointsman_claims "
                "WHERE study = :study AND genotype = :genotype AND owner = :owner",
                {"study": self.study, "genotype": _key(genotype), "owner": self.owner},
            )

    def close(self) -> None:
        self.presence.leave()
        self.engine.dispose()

    def _owner(self, row: Mapping[str, Any]) -> int | None:
        from sqlalchemy import text

        with self.engine.connect() as session:
            found = session.execute(
                text(
                    "SELECT owner FROM pointsman_claims "
                    "WHERE study = :study AND genotype = :genotype"
                ),
                {"study": row["study"], "genotype": row["genotype"]},
            ).scalar()
        return None if found is None else int(found)

    def _changes(self, statement: str, row: Mapping[str, Any]) -> bool:
        from sqlalchemy import text

        with self.engine.begin() as session:
            return bool(session.execute(text(statement), row).rowcount)


def _study(
    storage: Any, name: str, unit: str, facts: Mapping[str, str], space: Space, shown: str
) -> "optuna.Study":
    import optuna

    with _readable(shown):
        new = name not in [each.study_name for each in storage.get_all_studies()]
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
        if new:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(["quality", f"cost in {unit}"])
            study.set_user_attr("choices", [[c.name, list(c.options)] for c in space.choices])
            study.set_user_attr("facts", dict(facts))
    kept = study.user_attrs.get("facts")
    if not isinstance(kept, dict):
        raise InputError(f"{shown}: the study {name!r} is not a search's: take another name")
    for fact in {**kept, **facts}:
        if kept.get(fact) != facts.get(fact):
            raise InputError(
                f"{shown}: the study {name!r} is of another {fact} ({kept.get(fact)}, here "
                f"{facts.get(fact)}): its evaluations do not fit; take another study or file"
            )
    return study


def _evaluation(trial: "optuna.trial.FrozenTrial", space: Space, shown: str) -> Evaluation:
    try:
        facts = trial.user_attrs
        steps = sorted(trial.intermediate_values.items())
        return Evaluation(
            space.canonical(facts["genotype"]),
            float(trial.values[0]) if trial.values else math.nan,
            float(facts["cost"]),
            str(facts["failure"]),
            tuple(value for _, value in steps),
        )
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{shown}: trial {trial.number} is not what was written ({reason(error)}): bring back "
            "a copy of the study, or start another"
        ) from error


def _key(genotype: Genotype) -> str:
    return hashlib.sha256(repr(genotype).encode()).hexdigest()


@contextlib.contextmanager
def _readable(shown: str) -> Iterator[None]:
    """Errors of the database in one line."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        raise InputError(
            f"{shown}: the study cannot be read or written ({reason(cause)[:200]}): what was "
            "evaluated before is kept"
        ) from error
