"""Text encoder: equal to scikit-learn's counts, blind to order, bounded, saved to the last bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from pointsman.errors import InputError, PolicyError
from pointsman.pool.features import TextEncoder
from pointsman.pool.features.grams import learn_grams
from pointsman.pool.features.reading import read, read_part
from pointsman.pool.features.shape import COUNTED, NAMES, shape
from pointsman.pool.log import Log

TEXTS = (
    "What is 2 + 2?\n(A) 3\n(B) 4\n(C) 5\n(D) none of the above",
    "Which of the following is NOT a prime number?\nA. 2\nB. 3\nC. 9",
    "Write a haiku about the sea, please; no rhymes.",
    "def f(x):\n    return x + 1  # what does this return for f(2)?",
    "Überraschung: was heißt „Weiche“ auf Englisch?",
    "What is the capital of France? What is it called?",
    "写一首关于大海的俳句",
    "x",
    "",
)


def log_of(texts):
    quality = np.ones((len(texts), 2))
    return Log(texts, ("a", "b"), quality, quality)


def small(**keywords):
    return TextEncoder(**{"components": 5, "least": 1, "characters": (3, 5), **keywords})


def grams(texts, **keywords):
    given = {
        "words": 2,
        "characters": (3, 5),
        "least": 1,
        "most_words": 9**9,
        "most_characters": 9**9,
    }
    return learn_grams([read(text) for text in texts], **(given | keywords))


@given(st.lists(st.text(max_size=40), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_counts_equal_those_of_scikit_learn(texts):
    learned = grams([*texts, "ab ab"])
    words = CountVectorizer(token_pattern=r"(?u)\w+", ngram_range=(1, 2)).fit([*texts, "ab ab"])
    characters = CountVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit([*texts, "ab ab"])
    assert list(learned.word_terms) == sorted(words.vocabulary_)
    assert list(learned.character_terms) == sorted(characters.vocabulary_)
    expected = np.hstack([words.transform(texts).toarray(), characters.transform(texts).toarray()])
    for text, row in zip(texts, expected, strict=True):
        for _ in range(2):  # looked up, and remembered
            places, counts = learned.count(read(text))
            assert_array_equal(places, np.flatnonzero(row))
            assert_array_equal(counts, row[row > 0])


def test_weights_equal_those_of_scikit_learn():
    texts = sorted(TEXTS)
    sparse = small().fit(log_of(texts)).transform(log_of(texts)).sparse.toarray()
    common = {"sublinear_tf": True, "dtype": np.float32}
    words = TfidfVectorizer(token_pattern=r"(?u)\w+", ngram_range=(1, 2), **common)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), **common)
    expected = np.hstack([v.fit_transform(texts).toarray() for v in (words, characters)])
    assert_allclose(sparse, expected, atol=1e-6)


def test_the_most_frequent_terms_stay_and_ties_go_by_the_alphabet():
    learned = grams(["b a", "b c", "d"], words=1, characters=(0, 0), most_words=2)
    assert learned.word_terms == ("a", "b")
    assert grams(["b a", "b c"], words=1, characters=(0, 0), least=2).word_terms == ("b",)


def test_the_order_of_the_queries_is_of_no_consequence():
    order = np.random.default_rng(0).permutation(len(TEXTS))
    log = log_of(TEXTS)
    one, other = small().fit(log), small().fit(log.take(order))
    for name, array in one.to_state()[1].items():
        assert_array_equal(array, other.to_state()[1][name], err_msg=name)
    assert_array_equal(one.transform(log).dense[order], other.transform(log.take(order)).dense)


def test_one_query_alone_has_the_features_it_has_among_others():
    encoder = small().fit(log_of(TEXTS))
    whole = encoder.transform(log_of(TEXTS))
    for row, text in enumerate(TEXTS):
        alone = encoder.encode([text])
        assert_array_equal(alone.dense[0], whole.dense[row])
        assert_array_equal(alone.sparse.toarray()[0], whole.sparse[row].toarray()[0])
        assert alone.length[0] == len(text)


def test_features_are_finite_and_of_the_width_promised_also_for_what_was_never_seen():
    encoder = small(components=50).fit(log_of(TEXTS))
    features = encoder.encode(["", "\ud800 \x00 \u2028", "zzz qqq", "9" * 100_000])
    assert features.dense.shape == (4, 50 + len(NAMES))
    assert features.dense.dtype == features.sparse.dtype == np.float32
    assert np.isfinite(features.dense).all()
    assert np.abs(features.dense).max() <= 1.0


def test_of_a_long_query_the_first_and_the_last_part_are_read():
    assert read_part("abcdefgh", 4) == "ab\ngh"
    assert read_part("abcd", 4) == "abcd"
    encoder = small(most_characters=8).fit(log_of(TEXTS))
    near = encoder.encode(["sea \n all"])
    far = encoder.encode(["sea " + "x" * 10_000 + " all"])
    assert_array_equal(near.sparse.toarray(), far.sparse.toarray())
    assert far.length[0] == 10_008


def test_the_task_comes_from_the_group_or_from_the_request():
    log = Log(
        ["a", "b"], ("m",), [[1], [0]], [[1], [1]], groups={"task": np.array(["s", "t"], object)}
    )
    encoder = small().fit(log)
    assert list(encoder.transform(log).task) == ["s", "t"]
    assert list(encoder.encode(["c"], ["t"]).task) == ["t"]
    assert encoder.encode(["c"]).task is None


@pytest.mark.parametrize("keywords", [{}, {"characters": None}, {"words": 0}])
def test_it_comes_back_from_its_state_the_same_to_the_last_bit(keywords):
    encoder = small(**keywords).fit(log_of(TEXTS))
    plain, arrays = encoder.to_state()
    back = TextEncoder.from_state(plain, arrays)
    one, other = encoder.encode(TEXTS), back.encode(TEXTS)
    assert_array_equal(one.dense, other.dense)
    assert_array_equal(one.sparse.toarray(), other.sparse.toarray())


def test_a_state_with_other_features_of_shape_is_refused():
    plain, arrays = small().fit(log_of(TEXTS)).to_state()
    with pytest.raises(PolicyError, match="fit it again"):
        TextEncoder.from_state({**plain, "shape": ["length"]}, arrays)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"words": 0, "characters": None}, "n-grams of words or of characters"),
        ({"characters": (4, 3)}, "shortest, longest"),
        ({"words": -1}, "n-grams of words or of characters"),
    ],
)
def test_keywords_that_leave_nothing_to_see_are_refused(keywords, words):
    with pytest.raises(InputError, match=words):
        TextEncoder(**keywords).fit(log_of(TEXTS))


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        (TEXTS[0], "choices", 4),
        (TEXTS[0], "choices that are numbers", 3),
        (TEXTS[0], "all or none of the above", 1),
        (TEXTS[0], "words before the choices", 5),
        (TEXTS[0], "words of the longest choice", 4),
        (TEXTS[1], "negations", 1),
        (TEXTS[1], "capitals", 7),
        (TEXTS[2], "choices", 0),
        (TEXTS[3], "signs of code", 3),
        (TEXTS[4], "characters beyond ASCII", 4),
        (TEXTS[5], "question marks", 2),
        (TEXTS[5], "words", 10),
    ],
)
def test_shape_counts(text, name, count):
    assert name in COUNTED
    assert_allclose(shape(read(text))[NAMES.index(name)], np.log1p(count), rtol=1e-6)
