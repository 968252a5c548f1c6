"""Evaluations elsewhere: in processes of this machine, or on the workers of a Ray cluster.

Both give evaluations as they are done and ask for the next genotype when a worker is free. What a
search finds does not depend on how many workers there are, since engines are answered in the order
in which they asked; each worker computes with one thread, so that sums are added up alike.

A genotype during which a worker dies (killed, or out of memory) is tried once more, alone, and has
failed if that worker dies too; the search goes on.
"""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from types import TracebackType
from typing import Any, Self

from pointsman.errors import InputError, reason
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.search.run import evaluate
from pointsman.supernet.space import Genotype

# Makes the problem in each worker: a function that can be pickled, such as a `functools.partial`.
Make = Callable[[], Problem]

DIED = "the worker died while evaluating it (killed, or out of memory)"


class LocalWorkers:
    """Processes of this machine; a context manager, whose `evaluate` goes into `search`.

    As with all processes of Python, a script that uses it starts under `if __name__ == "__main__"`.

    Args:
        make: gives the problem, once in each process.
        count: of processes.
        threads: of each.

    Raises:
        InputError: fewer than one.
    """

    def __init__(self, make: Make, count: int, threads: int = 1) -> None:
        _check(count)
        self.make, self.count, self.threads = make, count, threads
        self._pool: ProcessPoolExecutor | None = None

    def evaluate(self, problem: Problem, genotypes: Iterable[Genotype]) -> Iterator[Evaluation]:
        """As they are done; the next genotype is taken when a worker is free.

        Raises:
            InputError: `make` failed in a worker.
        """
        waiting = iter(genotypes)
        running: dict[Future[Evaluation], Genotype] = {}
        while True:
            for genotype in islice(waiting, self.count - len(running)):
                running[self._submit(genotype)] = genotype
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            lost = []
            for future in done:
                genotype = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    lost.append(genotype)
                else:
                    yield _result(future)
            if lost:  # one worker took the whole pool with it
                lost += running.values()
                running.clear()
                self._end()
                yield from (self._alone(problem, genotype) for genotype in lost)

    def _alone(self, problem: Problem, genotype: Genotype) -> Evaluation:
        future = self._submit(genotype)
        if isinstance(future.exception(), BrokenProcessPool):
            self._end()
            return Evaluation(genotype, math.nan, problem.cost(genotype), DIED)
        return _result(future)

    def _submit(self, genotype: Genotype) -> Future[Evaluation]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.count, _context(), initializer=_begin, initargs=(self.make, self.threads)
            )
        try:
            return self._pool.submit(_evaluate, genotype)
        except BrokenProcessPool:  # a worker that died idle
            self._end()
            return self._submit(genotype)

    def _end(self, *, kill: bool = False) -> None:
        if self._pool is None:
            return
        processes = list((self._pool._processes or {}).values()) if kill else []
        for process in processes:
            process.kill()
        self._pool.shutdown(wait=not kill, cancel_futures=True)
        self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._end(kill=error is not None)


class RayWorkers:
    """Workers on a Ray cluster; a context manager, whose `evaluate` goes into `search`.

    Args:
        make: gives the problem, once in each worker; pickled by Ray, so any function will do.
        count: of workers, each of which takes one core.
        address: of a cluster that runs, such as "auto" or "ray://host:10001"; None: the one that
            this process is connected to, or else a cluster on this machine, which ends with it.
        resources: of each worker, as `ray.remote` takes them, such as `{"num_gpus": 1}`.

    Raises:
        InputError: fewer than one worker, or Ray is not installed.
    """

    def __init__(
        self,
        make: Make,
        count: int,
        address: str | None = None,
        resources: dict[str, Any] | None = None,
    ) -> None:
        _check(count)
        self.make, self.count, self.address = make, count, address
        self.resources = {"num_cpus": 1, **(resources or {})}
        self._own = False
        try:
            import ray
        except ImportError as error:
            raise InputError(
                'a search on Ray workers needs it: pip install "pointsman[ray]"'
            ) from error
        self._ray: Any = ray

    def evaluate(self, problem: Problem, genotypes: Iterable[Genotype]) -> Iterator[Evaluation]:
        """As they are done; the next genotype is taken when a worker is free.

        Raises:
            InputError: `make` failed in a worker.
        """
        waiting = iter(genotypes)
        running: dict[Any, tuple[int, Genotype]] = {}
        died: set[Genotype] = set()
        free = list(range(self.count))
        while True:
            for genotype in islice(waiting, len(free)):
                worker = free.pop()
                running[self._workers[worker].evaluate.remote(genotype)] = (worker, genotype)
            if not running:
                return
            done, _ = self._ray.wait(list(running))
            worker, genotype = running.pop(done[0])
            try:
                result = self._ray.get(done[0])
            except self._ray.exceptions.ActorDiedError:
                self._workers[worker] = self._worker()
                if genotype not in died:
                    died.add(genotype)
                    running[self._workers[worker].evaluate.remote(genotype)] = (worker, genotype)
                    continue
                result = Evaluation(genotype, math.nan, problem.cost(genotype), DIED)
            except self._ray.exceptions.RayError as error:
                cause = getattr(error, "cause", error)
                raise InputError(f"a worker cannot work: {reason(cause)[-200:]}") from error
            free.append(worker)
            yield result

    def _worker(self) -> Any:
        return self._ray.remote(**self.resources)(_Worker).remote(self.make)

    def __enter__(self) -> Self:
        if not self._ray.is_initialized():
            options: dict[str, Any] = {"address": self.address}
            if self.address is None:
                options = {"num_cpus": self.count, "include_dashboard": False}
            try:
                self._ray.init(log_to_driver=False, **options)
            except Exception as error:  # Ray raises plain exceptions here
                raise InputError(f"no Ray cluster can be reached: {reason(error)[:200]}") from error
            self._own = True
        self._workers = [self._worker() for _ in range(self.count)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            self._ray.kill(worker)
        if self._own:
            self._ray.shutdown()


class _Worker:
    """What lives in a worker: the problem, or why it could not be made."""

    def __init__(self, make: Make, threads: int = 1) -> None:
        import torch

        torch.set_num_threads(threads)
        self.problem: Problem | None = None
        try:
            self.problem = make()
        except Exception as error:  # whatever a user's function does
            self.broken = f"{type(error).__name__}: {reason(error)}"

    def evaluate(self, genotype: Genotype) -> Evaluation:
        if self.problem is None:
            raise InputError(f"a worker cannot make its problem ({self.broken})")
        return evaluate(self.problem, genotype)


_here: _Worker | None = None  # in a process of `LocalWorkers`


def _begin(make: Make, threads: int) -> None:
    """Make a process ready to evaluate: it ends with its parent, and leaves Ctrl-C to it."""
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _here = _Worker(make, threads)


def _evaluate(genotype: Genotype) -> Evaluation:
    assert _here is not None
    return _here.evaluate(genotype)


def _result(future: Future[Evaluation]) -> Evaluation:
    error = future.exception()
    if error is not None and not isinstance(error, InputError):
        raise InputError(f"a worker cannot work: {type(error).__name__}: {reason(error)}")
    return future.result()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _context() -> Any:
    """Processes forked from a fresh one that has imported what they need; else each a fresh one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def _check(count: int) -> None:
    if count < 1:
        raise InputError(f"a search has at least one worker, got {count}")
