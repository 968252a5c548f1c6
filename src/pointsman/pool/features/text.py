"""Text as TF-IDF of words and characters, its reduction, and its shape: no download, no network.

Legend: N queries, V n-grams (sparse features), C components, F shape features, D = C + F dense.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from pointsman.errors import InputError, PolicyError
from pointsman.pool.features.features import Dense, Features
from pointsman.pool.features.grams import Grams, Indices, learn_grams
from pointsman.pool.features.reading import MOST_CHARACTERS, Reading, read, read_part
from pointsman.pool.features.reduction import directions
from pointsman.pool.features.shape import NAMES, shape
from pointsman.pool.log import Log
from pointsman.pool.saving import Arrays, Plain

MOST_QUERIES = 50_000  # that the vocabulary and the reduction are learned from
CHARACTER_WEIGHT = 0.3  # of characters beside words where both are reduced; words say more
SHAPE_WEIGHT = 0.1  # of a standardised shape feature beside a reduced text of length one
FARTHEST = 5.0  # standard deviations at which a shape feature is cut


class TextEncoder:
    """Word and character TF-IDF; reduced by a truncated singular value decomposition, with shape.

    TF-IDF is sublinear, (1 + log count) * idf with idf = 1 + log((1 + N) / (1 + texts that have
    it)); words and characters have length one each before they stand side by side. `sparse` is
    that; `dense` is its projection on the first right singular vectors, characters weighing less,
    of length one, followed by the standardised features of `shape`, weighted so that they do not
    outweigh the text.

    The result depends neither on the order of the queries nor on chance. Of a query longer than
    `most_characters` the first and the last half of that are read; its length is that of all of it.
    Of logs with more than 50,000 different queries, vocabulary and reduction are learned on 50,000,
    picked by a digest of their text.

    Args:
        words: longest n-gram of words; 0: none.
        characters: shortest and longest n-gram of characters inside of words; None: none.
        components: C, of the reduction; fewer where there are fewer queries or n-grams.
        least: texts that an n-gram must stand in.
        most_words: n-grams of words kept, the most frequent.
        most_grams: n-grams of characters kept.
        most_characters: of a query that are read.
    """

    def __init__(
        self,
        *,
        words: int = 2,
        characters: tuple[int, int] | None = (3, 3),
        components: int = 64,
        least: int = 2,
        most_words: int = 40_000,
        most_grams: int = 20_000,
        most_characters: int = MOST_CHARACTERS,
    ) -> None:
        self.words = words
        self.characters = characters
        self.components = components
        self.least = least
        self.most_words = most_words
        self.most_grams = most_grams
        self.most_characters = most_characters

    def fit(self, log: Log) -> Self:
        """Learn vocabulary, weights and reduction.

        Raises:
            InputError: keywords that leave nothing to look at.
        """
        self._check()
        texts = _distinct(read_part(query, self.most_characters) for query in log.queries)
        readings = [read(text) for text in texts]
        self.grams_ = learn_grams(
            readings,
            words=self.words,
            characters=self.characters or (0, 0),
            least=min(self.least, len(texts)),
            most_words=self.most_words,
            most_characters=self.most_grams,
        )
        counts = [self.grams_.count(reading) for reading in readings]
        places = np.concatenate([places for places, _ in counts])
        frequency = np.bincount(places, minlength=len(self.grams_))
        self.idf_ = (1 + np.log((1 + len(texts)) / (1 + frequency))).astype(np.float32)
        weight = np.ones(len(self.grams_), dtype=np.float32)
        weight[len(self.grams_.word_terms) :] = CHARACTER_WEIGHT
        found = directions(self._sparse(counts).multiply(weight).tocsr(), self.components)
        self.directions_ = weight[:, None] * found
        shapes = np.stack([shape(reading) for reading in readings])
        self.mean_ = shapes.mean(axis=0, dtype=np.float64).astype(np.float32)
        spread = shapes.std(axis=0, dtype=np.float64)
        # a feature that never varied says nothing, also where a later query has it
        self.scale_ = np.where(spread > 1e-6, SHAPE_WEIGHT / np.maximum(spread, 1e-6), 0.0).astype(
            np.float32
        )
        return self

    def transform(self, log: Log) -> Features:
        """Features of every query of a log; the group "task", if there, is the task."""
        return self.encode(log.queries, log.groups.get("task"))

    def encode(
        self,
        queries: Sequence[str] | npt.NDArray[np.object_],
        tasks: Sequence[str] | npt.NDArray[np.object_] | None = None,
    ) -> Features:
        """Features of queries, one or many."""
        readings = [read(read_part(query, self.most_characters)) for query in queries]
        length = np.array([len(query) for query in queries], dtype=np.float32)
        sparse = self._sparse([self.grams_.count(reading) for reading in readings])
        return Features(
            dense=np.hstack([self._reduced(sparse), self._shapes(readings, length)]),
            sparse=sparse,
            length=length,
            task=None if tasks is None else np.array(tasks, dtype=object),
        )

    def _check(self) -> None:
        if self.words < 0 or (self.words == 0 and self.characters is None):
            raise InputError(
                f"the encoder needs n-grams of words or of characters, got words={self.words}, "
                f"characters={self.characters}"
            )
        if self.characters is not None and not 1 <= self.characters[0] <= self.characters[1]:
            raise InputError(
                "characters must be (shortest, longest) with 1 <= shortest <= longest, "
                f"got {self.characters}"
            )

    def _sparse(self, counts: Sequence[tuple[Indices, Indices]]) -> Any:
        values = [self._weights(places, times) for places, times in counts]
        if len(counts) == 1:
            places = counts[0][0]
            starts = np.array([0, len(places)], dtype=np.int32)
        else:
            places = np.concatenate([places for places, _ in counts])
            starts = np.cumsum([0, *map(len, values)])
            if len(places) < np.iinfo(np.int32).max:  # scipy would find out, at length
                starts = starts.astype(np.int32)
        weights = values[0] if len(values) == 1 else np.concatenate(values)
        size = (len(counts), len(self.grams_))
        return csr_matrix((weights, places.astype(starts.dtype), starts), shape=size)

    def _weights(self, places: Indices, times: Indices) -> Dense:
        values: Dense = (1 + np.log(times)).astype(np.float32) * self.idf_[places]
        border = int(places.searchsorted(len(self.grams_.word_terms)))
        for part in (values[:border], values[border:]):
            if part.size:
                part /= np.sqrt(part @ part)
        return values

    def _reduced(self, sparse: Any) -> Dense:
        projected = sparse @ self.directions_
        norm = np.sqrt(np.square(projected).sum(axis=1, keepdims=True))
        reduced: Dense = projected / np.maximum(norm, np.float32(1e-6))
        return reduced

    def _shapes(self, readings: Sequence[Reading], length: Dense) -> Dense:
        shapes = np.stack(
            [shape(reading, float(size)) for reading, size in zip(readings, length, strict=True)]
        )
        most = SHAPE_WEIGHT * FARTHEST
        cut: Dense = np.clip((shapes - self.mean_) * self.scale_, -most, most)
        return cut

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """See `Saved`."""
        keywords = {
            "words": self.words,
            "characters": None if self.characters is None else list(self.characters),
            "components": self.components,
            "least": self.least,
            "most_words": self.most_words,
            "most_grams": self.most_grams,
            "most_characters": self.most_characters,
        }
        return {"keywords": keywords, "shape": list(NAMES)}, {
            "word_terms": _bytes(self.grams_.word_terms),
            "character_terms": _bytes(self.grams_.character_terms),
            "idf": self.idf_,
            "mean": self.mean_,
            "scale": self.scale_,
            "directions": self.directions_,
        }

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`.

        Raises:
            PolicyError: the features of shape are others than those of this version.
        """
        if list(plain["shape"]) != list(NAMES):
            raise PolicyError(
                "this policy was written with other features of the shape of a query than this "
                "version of pointsman has: fit it again"
            )
        keywords = dict(plain["keywords"])
        if keywords["characters"] is not None:
            keywords["characters"] = tuple(keywords["characters"])
        encoder = cls(**keywords)
        encoder.grams_ = Grams(
            encoder.words,
            encoder.characters or (0, 0),
            _terms(arrays["word_terms"]),
            _terms(arrays["character_terms"]),
        )
        encoder.idf_ = arrays["idf"]
        encoder.mean_ = arrays["mean"]
        encoder.scale_ = arrays["scale"]
        encoder.directions_ = arrays["directions"]
        return encoder


def _distinct(texts: Iterable[str]) -> list[str]:
    """Each text once, in alphabetical order; of very many, some by a digest of their letters."""
    different = sorted(set(texts))
    if len(different) <= MOST_QUERIES:
        return different

    def digest(text: str) -> bytes:
        return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()

    return sorted(sorted(different, key=digest)[:MOST_QUERIES])


def _bytes(terms: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Terms as one array; none of them holds a line break, for they are cut at white space."""
    joined = "\n".join(terms).encode(errors="surrogatepass")
    return np.frombuffer(joined, dtype=np.uint8)


def _terms(joined: npt.NDArray[np.uint8]) -> list[str]:
    text = joined.tobytes().decode(errors="surrogatepass")
    return text.split("\n") if text else []
