from functools import partial

import pytest

from pointsman.errors import RouteError
from pointsman.select import Guarantee, guarantee_of, guarantees, prototypes, top_k, with_capacity


def test_a_declaration_is_read_back_through_partials():
    assert guarantee_of(top_k) == Guarantee(batch_independent=True, causal=True)
    assert guarantee_of(partial(partial(top_k, k=2), noise=1.0)) == guarantee_of(top_k)


def test_a_declaration_may_hang_on_an_argument_and_the_outermost_partial_decides():
    by_position, by_score = Guarantee(False, True), Guarantee(False, False)
    assert guarantee_of(with_capacity) == by_position
    scored = partial(with_capacity, order="score")
    assert guarantee_of(scored) == by_score
    assert guarantee_of(partial(scored, k=2)) == by_score
    assert guarantee_of(partial(scored, order="position")) == by_position


def test_a_declaration_may_hang_on_whether_an_argument_is_given():
    assert guarantee_of(prototypes) == Guarantee(True, True)
    assert guarantee_of(partial(prototypes, capacity=None)) == Guarantee(True, True)
    limited = partial(prototypes, capacity=3)
    assert guarantee_of(limited) == Guarantee(False, True)
    assert guarantee_of(partial(limited, capacity=None)) == Guarantee(True, True)


def test_a_decorated_function_stays_itself():
    def function(scores):
        return scores

    declared = guarantees(batch_independent=False, causal=True)(function)
    assert declared is function
    assert guarantee_of(declared) == Guarantee(False, True)


def test_contradicting_and_missing_declarations_are_refused():
    with pytest.raises(RouteError, match="causal=False"):
        Guarantee(batch_independent=True, causal=False)
    with pytest.raises(RouteError, match="causal=False"):
        guarantees(batch_independent=True, causal=False)
    with pytest.raises(RouteError, match="<lambda> declares no guarantee"):
        guarantee_of(partial(lambda scores: scores))
