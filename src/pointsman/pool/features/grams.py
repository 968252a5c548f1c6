"""Which n-grams of words and of characters a text has, and how often.

Words are runs of letters, digits and underscores in lower case; their n-grams are joined by one
space. Character n-grams stay inside of what white space separates, with one space before and after
it. Both equal scikit-learn's `CountVectorizer` with `token_pattern=r"\\w+"` and with
`analyzer="char_wb"`, which a test checks; the own way is there because one query has to take tens
of microseconds: the character n-grams of a word are looked up once and then remembered.

Legend: V n-grams in the vocabulary, those of words first.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pointsman.pool.features.reading import Reading

Indices = npt.NDArray[np.int64]

MOST_REMEMBERED = 50_000  # words; about 30 MB
LONGEST_REMEMBERED = 40  # characters


class Grams:
    """A vocabulary of n-grams, and their counts in a text.

    Args:
        words: longest n-gram of words; 0: none.
        characters: shortest and longest n-gram of characters; (0, 0): none.
        word_terms: n-grams of words in the vocabulary.
        character_terms: n-grams of characters in the vocabulary.
    """

    def __init__(
        self,
        words: int,
        characters: tuple[int, int],
        word_terms: Sequence[str],
        character_terms: Sequence[str],
    ) -> None:
        self.words = words
        self.characters = characters
        self.word_terms = tuple(word_terms)
        self.character_terms = tuple(character_terms)
        self._word_at = {term: at for at, term in enumerate(self.word_terms)}
        start = len(self.word_terms)
        self._character_at = {term: at for at, term in enumerate(self.character_terms, start)}
        self._remembered: dict[str, list[int]] = {}

    def __len__(self) -> int:
        """Number of n-grams V."""
        return len(self.word_terms) + len(self.character_terms)

    def count(self, reading: Reading) -> tuple[Indices, Indices]:
        """Places of the n-grams that a text has, ascending, and how often it has each."""
        at = self._word_at
        terms = word_grams(reading.words, self.words)
        found = [at[term] for term in terms if term in at]
        if self.character_terms:
            remembered = self._remembered
            for word in reading.lower.split():
                places = remembered.get(word)
                found += self._look_up(word) if places is None else places
        return _counted(np.array(found, dtype=np.int64))

    def _look_up(self, word: str) -> list[int]:
        at = self._character_at
        places = [at[term] for term in character_grams(word, *self.characters) if term in at]
        if len(word) <= LONGEST_REMEMBERED:
            if len(self._remembered) >= MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[word] = places
        return places


def learn_grams(
    readings: Sequence[Reading],
    *,
    words: int,
    characters: tuple[int, int],
    least: int,
    most_words: int,
    most_characters: int,
) -> Grams:
    """The n-grams that stand in the most texts, and in at least `least` of them.

    Of equally frequent ones the first in alphabetical order come first; neither the order of the
    texts nor anything random is of consequence.
    """
    by_word = (set(word_grams(reading.words, words)) for reading in readings)
    by_character = _character_sets(readings, characters) if characters[1] else iter(())
    return Grams(
        words,
        characters,
        _frequent(by_word, least, most_words),
        _frequent(by_character, least, most_characters),
    )


def word_grams(words: Sequence[str], longest: int) -> list[str]:
    """The n-grams of a text's words, from single words up to the longest."""
    grams: list[str] = []
    for n in range(1, longest + 1):
        parts = [words[start:] for start in range(n)]
        grams += words if n == 1 else map(" ".join, zip(*parts, strict=False))
    return grams


def character_grams(word: str, shortest: int, longest: int) -> list[str]:
    """The n-grams of a word with a space before and after it; a word shorter than n counts once."""
    padded = f" {word} "
    size = len(padded)
    grams: list[str] = []
    for n in range(shortest, longest + 1):
        if size <= n:
            grams.append(padded)
            break
        grams += [padded[start : start + n] for start in range(size - n + 1)]
    return grams


def _counted(places: Indices) -> tuple[Indices, Indices]:
    """What `np.unique(places, return_counts=True)` gives, in half the time for a few hundred."""
    places.sort()
    first = np.empty(len(places) + 1, dtype=np.bool_)
    first[:1] = first[-1:] = True
    np.not_equal(places[1:], places[:-1], out=first[1:-1])
    starts = first.nonzero()[0]
    return places[starts[:-1]], starts[1:] - starts[:-1]


def _character_sets(readings: Sequence[Reading], characters: tuple[int, int]) -> Iterator[set[str]]:
    of_word: dict[str, list[str]] = {}
    for reading in readings:
        grams: set[str] = set()
        for word in set(reading.lower.split()):
            if word not in of_word:
                of_word[word] = character_grams(word, *characters)
            grams.update(of_word[word])
        yield grams


def _frequent(sets: Iterable[set[str]], least: int, most: int) -> list[str]:
    """Terms by the number of sets that hold them, sorted alphabetically in the end."""
    frequency: Counter[str] = Counter()
    for terms in sets:
        frequency.update(terms)
    kept = [term for term, times in frequency.items() if times >= least]
    kept.sort(key=lambda term: (-frequency[term], term))
    return sorted(kept[:most])
