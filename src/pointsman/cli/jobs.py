"""What `pointsman compare` is to do, from its options: a data set's networks, or a log's models."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pointsman.compare.progress import Progress
from pointsman.compare.request import Request
from pointsman.errors import InputError

Run = Callable[[Path, Progress], dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """A comparison that is ready to start.

    Args:
        name: of the data, after which the folder of the results is called.
        heading: lines to show before it starts.
        run: does it, given the folder and whom to tell of the progress.
    """

    name: str
    heading: list[str]
    run: Run


@dataclass(frozen=True)
class LogOptions:
    """Options that only an evaluation log has; see `pointsman compare --help`."""

    query: str | None = None
    models: str | None = None
    reference: str | None = None
    prices: Path | None = None
    groups: tuple[str, ...] = ()
    quality_range: str | None = None
    encoder: str | None = None
    examples: int = 5

    def given(self) -> bool:
        """Whether one was given, so that the file is meant to be a log."""
        return replace(self, examples=LogOptions.examples) != LogOptions()

    def names(self) -> list[str] | None:
        """The models named, if any."""
        if self.models is None:
            return None
        return [name.strip() for name in self.models.split(",") if name.strip()]

    def scale(self) -> tuple[float, float] | None:
        """Lowest and highest score.

        Raises:
            InputError: not two numbers.
        """
        if self.quality_range is None:
            return None
        try:
            low, high = (float(part) for part in self.quality_range.split(","))
        except ValueError as error:
            raise InputError(
                f"--quality-range takes two numbers such as 0,10, got {self.quality_range!r}"
            ) from error
        return low, high


def looks_like_log(data: str) -> bool:
    """Whether DATA is a file that is an evaluation log."""
    from pointsman.pool.reading import looks_like_log as looks

    return Path(data).is_file() and looks(data)


def data_job(
    data: str,
    request: Request,
    *,
    target: str | None,
    rows: int | None,
    large: bool,
    resume: bool,
) -> Job:
    """Networks on a data set.

    Raises:
        InputError: as `pointsman.compare.files.load`.
    """
    from pointsman.compare.files import load
    from pointsman.compare.run import compare

    dataset = load(data, target=target, rows=rows, large=large, seed=request.seed)
    heading = [
        f"{dataset.name}: {len(dataset.given['train']):,} rows of {dataset.kind}"
        + (f", {dataset.note}" if dataset.note else "")
    ]
    request.check(dataset.kind)
    return Job(
        dataset.name,
        heading,
        lambda folder, bar: compare(dataset, request, folder, resume=resume, progress=bar),
    )


def log_job(
    data: str,
    request: Request,
    options: LogOptions,
    *,
    rows: int | None,
    resume: bool,
    target: str | None,
) -> Job:
    """Routers and cascades over the models of an evaluation log.

    Raises:
        InputError: as `pointsman.pool.reading.read_log`, or an option that a log has not.
    """
    from pointsman.compare.queries.run import compare_log
    from pointsman.pool.reading import read_log

    if target is not None:
        raise InputError("--target names a label column; an evaluation log has --query instead")
    if resume:
        raise InputError("--resume: on a log, fitting takes minutes and is not kept: start anew")
    if options.examples < 0:
        raise InputError(f"--examples takes a number from 0, got {options.examples}")
    log = read_log(
        data,
        query=options.query,
        models=options.names(),
        prices=options.prices,
        groups=options.groups or None,
        quality_range=options.scale(),
        rows=rows,
        seed=request.seed,
    )
    encoder = _encoder(options.encoder, data)
    return Job(
        log.name,
        [f"{log.name}: an evaluation log. {log.note}"],
        lambda folder, bar: compare_log(
            log,
            request,
            folder,
            reference=options.reference,
            encoder=encoder,
            examples=options.examples,
            progress=bar,
        ),
    )


def _encoder(which: str | None, data: str) -> Any:
    """The encoder that an option names; None: whichever suits the log."""
    from pointsman.pool.features import EndpointEncoder, FolderEncoder, TextEncoder, VectorEncoder

    if which is None:
        return None
    if which == "words":
        return TextEncoder()
    if which == "vectors":
        return VectorEncoder()
    if which.startswith(("http://", "https://")):
        url, _, model = which.partition("#")
        if not model:
            raise InputError(f"--encoder {which}: name the endpoint's model too, as URL#MODEL")
        return EndpointEncoder(url, model)
    if Path(which).is_dir():
        return FolderEncoder(which)
    raise InputError(
        f"--encoder is words, vectors, a folder with a sentence-transformers model, or the URL of "
        f"an embeddings endpoint, got {which!r} for {data}"
    )
