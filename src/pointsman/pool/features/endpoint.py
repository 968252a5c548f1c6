"""Embeddings from an HTTP endpoint that speaks OpenAI's interface, only where the user names one.

Legend: N queries, D features.
"""

import os
import time
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.features.features import Dense, Features
from pointsman.pool.features.reading import MOST_CHARACTERS, read_part
from pointsman.pool.features.vectors import features_of
from pointsman.pool.log import Log
from pointsman.pool.saving import Arrays, Plain

AGAIN = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
LONGEST_WAIT = 30.0  # seconds between two tries


class EndpointEncoder:
    """Asks `url`/embeddings for the vectors of queries, many at a time, each text once.

    Busy or failing answers (408, 409, 425, 429, 500, 502, 503, 504) and broken connections are
    tried again after 0.5, 1, 2, … seconds, or when the answer says. Redirects are not followed. One
    query takes a round trip to the endpoint, and `encode` waits for it: a server should call it
    from a thread.

    A policy keeps the address and the name of the variable that holds the key, never the key.

    Args:
        url: such as "http://127.0.0.1:8000/v1".
        model: its name at the endpoint.
        key: environment variable that holds the key; None: no key is sent.
        batch: texts in a request.
        retries: tries after the first.
        timeout: seconds for one request.
        most_characters: of a query that are sent, see `read_part`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        batch: int = 64,
        retries: int = 4,
        timeout: float = 30.0,
        most_characters: int = MOST_CHARACTERS,
    ) -> None:
        self.url = url
        self.model = model
        self.key = key
        self.batch = batch
        self.retries = retries
        self.timeout = timeout
        self.most_characters = most_characters
        self._client: Any = None

    def fit(self, log: Log) -> Self:
        """Ask for one vector to learn its length D; nothing is learned from the queries.

        Raises:
            InputError: no address of HTTP, no key where one is named, or no proper answer.
        """
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"an endpoint's address starts with http or https, got {self.url!r}")
        self.width_ = int(self._ask(["width"]).shape[1])
        return self

    def transform(self, log: Log) -> Features:
        """Vectors of every query of a log."""
        return self.encode(log.queries, log.groups.get("task"))

    def encode(
        self,
        queries: Sequence[str] | npt.NDArray[np.object_],
        tasks: Sequence[str] | npt.NDArray[np.object_] | None = None,
    ) -> Features:
        """Vectors of queries.

        Raises:
            InputError: the endpoint gives no proper answer.
        """
        texts = [read_part(query, self.most_characters) or " " for query in queries]
        place = {text: at for at, text in enumerate(dict.fromkeys(texts))}
        different = list(place)
        parts = [
            self._ask(different[start : start + self.batch])
            for start in range(0, len(different), self.batch)
        ]
        dense = np.concatenate(parts)
        if dense.shape[1] != self.width_:
            raise InputError(
                f"{self.url} gives vectors of length {dense.shape[1]} now, {self.width_} when it "
                "was fitted: name the same model, or fit again"
            )
        return features_of(dense[[place[text] for text in texts]], queries, tasks)

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """See `Saved`."""
        names = ("url", "model", "key", "batch", "retries", "timeout", "most_characters")
        keywords = {name: getattr(self, name) for name in names}
        return {"keywords": keywords, "width": self.width_}, {}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        self = cls(**plain["keywords"])
        self.width_ = int(plain["width"])
        return self

    def _ask(self, texts: list[str]) -> Dense:
        """(len(texts), D) vectors, tried again while there is hope."""
        import httpx2

        if self._client is None:
            self._client = httpx2.Client(timeout=self.timeout, headers=self._headers())
        problem = ""
        for attempt in range(self.retries + 1):
            wait = min(LONGEST_WAIT, 0.5 * 2**attempt)
            try:
                answer = self._client.post(
                    f"{self.url.rstrip('/')}/embeddings",
                    json={"model": self.model, "input": texts, "encoding_format": "float"},
                )
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__} {error}".strip()
            else:
                if answer.status_code == 200:
                    return _vectors(answer, len(texts), self.url)
                problem = f"status {answer.status_code}: {answer.text[:200]!r}"
                if answer.status_code not in AGAIN:
                    break
                wait = _asked_wait(answer.headers.get("retry-after"), wait)
            if attempt < self.retries:
                time.sleep(wait)
        raise InputError(f"{self.url} gives no embeddings for model {self.model!r}: {problem}")

    def _headers(self) -> dict[str, str]:
        if self.key is None:
            return {}
        if not os.environ.get(self.key):
            raise InputError(
                f"the key for {self.url} is looked for in the environment variable {self.key}, "
                "which is not set: set it"
            )
        return {"authorization": f"Bearer {os.environ[self.key]}"}


def _vectors(answer: Any, n: int, url: str) -> Dense:
    try:
        data = sorted(answer.json()["data"], key=lambda each: int(each["index"]))
        dense: Dense = np.array([each["embedding"] for each in data], dtype=np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{url} must answer with a list of embeddings under 'data', got {answer.text[:200]!r}"
        ) from error
    if dense.ndim != 2 or len(dense) != n or not np.isfinite(dense).all():
        raise InputError(
            f"{url} must answer with {n} vectors of finite numbers, got an array of {dense.shape}"
        )
    return dense


def _asked_wait(header: str | None, otherwise: float) -> float:
    try:
        return min(LONGEST_WAIT, max(0.0, float(header or "")))
    except ValueError:
        return otherwise
