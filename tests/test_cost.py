import numpy as np
import pytest
import torch
from torch import nn

from pointsman.cost import (
    Cost,
    Latency,
    Price,
    compare_latency,
    count_flops,
    flops_per_input,
    measure_latency,
)
from pointsman.errors import InputError, UnitError

# ---------------------------------------------------------------- units


def test_costs_of_one_unit_add_subtract_scale_and_divide():
    a, b = Cost(6.0, "ms"), Cost(2.0, "ms")
    assert (a + b).amount == 8.0
    assert (a - b).amount == 4.0
    assert (a * 2).amount == (2 * a).amount == 12.0
    assert (a / 3).amount == 2.0
    assert a / b == 3.0
    assert not isinstance(a / b, Cost)
    assert sum([a, b]).amount == 8.0
    assert {(a + b).unit, (a - b).unit, (a * 2).unit, (a / 3).unit} == {"ms"}


def test_costs_of_one_unit_compare():
    a, b = Cost(1.0, "ms"), Cost(2.0, "ms")
    assert a < b
    assert a <= b
    assert b > a
    assert b >= a
    assert a == Cost(1.0, "ms")
    assert a != b


@pytest.mark.parametrize(
    "operation",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a / b,
        lambda a, b: a < b,
        lambda a, b: a <= b,
        lambda a, b: a > b,
        lambda a, b: a >= b,
        lambda a, b: a == b,
        lambda a, b: a != b,
    ],
)
def test_costs_of_two_units_never_meet(operation):
    with pytest.raises(UnitError, match="'MFLOPs' and 'ms'"):
        operation(Cost(1.0, "MFLOPs"), Cost(1.0, "ms"))


def test_units_of_one_kind_are_not_converted_silently():
    with pytest.raises(UnitError, match=r"\.to\("):
        Cost(1.0, "MFLOPs") + Cost(1.0, "GFLOPs")


@pytest.mark.parametrize("other", [1.0, np.float64(1), np.ones(2), torch.ones(2)])
def test_a_bare_number_is_not_added_to_a_cost_from_either_side(other):
    with pytest.raises(UnitError):
        Cost(1.0, "ms") + other
    with pytest.raises(UnitError):
        other + Cost(1.0, "ms")
    with pytest.raises((UnitError, TypeError)):
        other - Cost(1.0, "ms")


def test_two_costs_have_no_product():
    with pytest.raises(UnitError, match="product"):
        Cost(1.0, "ms") * Cost(1.0, "ms")


def test_arrays_and_tensors_scale_a_cost_from_the_left_too():
    assert isinstance(np.ones(2) * Cost(3.0, "s"), Cost)
    assert isinstance(torch.ones(2) * Cost(3.0, "s"), Cost)
    np.testing.assert_allclose((np.arange(2) * Cost(3.0, "s")).amount, [0.0, 3.0])


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_amounts_may_be_arrays(kind):
    a, b = Cost(kind([1.0, 2.0]), "ms"), Cost(kind([1.0, 5.0]), "ms")
    np.testing.assert_array_equal((a + b).amount, [2.0, 7.0])
    np.testing.assert_array_equal(a == b, [True, False])
    np.testing.assert_array_equal(a != b, [False, True])
    np.testing.assert_array_equal(a < b, [False, True])
    assert a.sum() == Cost(3.0, "ms")
    assert a.mean() == Cost(1.5, "ms")
    assert isinstance(a.mean().amount, float)


def test_sum_of_half_precision_does_not_drift():
    assert Cost(torch.ones(3000, dtype=torch.bfloat16), "ms").sum() == Cost(3000.0, "ms")


def test_sum_of_an_amount_with_gradient():
    assert Cost(torch.ones(3, requires_grad=True), "ms").sum() == Cost(3.0, "ms")


@pytest.mark.parametrize(
    ("amount", "unit", "into", "expected"),
    [
        (1500.0, "MFLOPs", "GFLOPs", 1.5),
        (1.0, "PFLOPs", "TFLOPs", 1000.0),
        (2.0, "h", "min", 120.0),
        (1.0, "us", "s", 1e-6),
        (3.0, "ktokens", "tokens", 3000.0),
        (250.0, "US cents", "US$", 2.5),
        (4.0, "calls", "calls", 4.0),
    ],
)
def test_conversion_inside_a_kind(amount, unit, into, expected):
    converted = Cost(amount, unit).to(into)
    assert converted.unit == into
    assert converted.amount == pytest.approx(expected)
    assert converted.to(unit).amount == pytest.approx(amount)


@pytest.mark.parametrize(("unit", "into"), [("ms", "MFLOPs"), ("ms", "weeks"), ("calls", "ms")])
def test_conversion_between_kinds_is_refused(unit, into):
    with pytest.raises(UnitError, match=f"'{unit}' cannot be converted to '{into}'"):
        Cost(1.0, unit).to(into)


def test_a_cost_reads_as_amount_and_unit():
    assert str(Cost(1234.56, "ms")) == "1235 ms"
    assert str(Cost(3, "tokens")) == "3 tokens"
    assert float(Cost(2.5, "ms")) == 2.5


def test_price_converts_the_quantity_first():
    price = Price(Cost(24.7, "US$"), per="Mtokens")
    bill = price.of(Cost(np.array([1000.0, 2e6]), "tokens"))
    assert bill.unit == "US$"
    np.testing.assert_allclose(bill.amount, [0.0247, 49.4])
    with pytest.raises(UnitError):
        price.of(Cost(1.0, "ms"))


# ---------------------------------------------------------------- FLOPs

T, D = 6, 8
ATTENTION = 2 * T * D * 3 * D + 2 * 2 * T * T * D + 2 * T * D * D  # in, two products, out


@pytest.mark.parametrize(
    ("run", "shape", "flops"),
    [
        (nn.Linear(3, 5), (7, 3), 2 * 7 * 3 * 5),
        (nn.Linear(3, 5, bias=False), (3,), 2 * 3 * 5),
        (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 5), 2 * 2 * 25 * 4 * 27),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), (1, 4, 5, 5), 2 * 25 * 4 * 18),
        (nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.LayerNorm(5)), (1, 3), 2 * 3 * 5),
        (lambda x: x @ torch.ones(3), (7, 3), 2 * 7 * 3),
        (lambda x: x[0] @ x[1], (2, 9), 2 * 9),
        (lambda x: torch.addbmm(torch.zeros(3, 5), x, torch.ones(2, 4, 5)), (2, 3, 4), 2 * 2 * 60),
        (nn.TransformerEncoderLayer(D, 2, 16, batch_first=True), (3, T, D), None),
        (nn.LSTM(3, 5, num_layers=2), (T, 4, 3), 2 * T * 4 * 20 * ((3 + 5) + (5 + 5))),
        (nn.GRU(3, 5, batch_first=True), (4, T, 3), 2 * T * 4 * 15 * (3 + 5)),
    ],
)
def test_flops_equal_the_formula(run, shape, flops):
    flops = 3 * (ATTENTION + 2 * 2 * T * D * 16) if flops is None else flops
    counted = count_flops(run, torch.randn(shape))
    assert counted.unit == "MFLOPs"
    assert counted.amount * 1e6 == pytest.approx(flops)


@pytest.mark.parametrize("training", [True, False])
def test_flops_of_attention_do_not_hang_on_the_fast_path(training):
    attention = nn.MultiheadAttention(D, 2, batch_first=True).train(training)
    before = torch.backends.mha.get_fastpath_enabled()
    counted = count_flops(lambda x: attention(x, x, x)[0], torch.randn(2, T, D))
    assert counted.amount * 1e6 == pytest.approx(2 * ATTENTION)
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_flops_of_scaled_dot_product_attention():
    q = torch.randn(2, 3, T, D)
    counted = count_flops(nn.functional.scaled_dot_product_attention, q, q, q)
    assert counted.amount * 1e6 == pytest.approx(2 * 3 * 2 * 2 * T * T * D)


def test_flops_of_a_grouped_product_do_not_hang_on_how_it_is_split():
    x, weights = torch.randn(T, 8), torch.randn(2, 8, 4)
    for split in (0, 2, T):
        ends = torch.tensor([split, T], dtype=torch.int32)
        counted = count_flops(lambda e: nn.functional.grouped_mm(x, weights, offs=e), ends)
        assert counted.amount * 1e6 == pytest.approx(2 * T * 8 * 4)


def test_counting_leaves_modes_and_statistics_alone():
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.BatchNorm1d(5))
    net.train()
    net[3].eval()  # a frozen part of a training net
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    count_flops(net, torch.randn(4, 3))
    assert [module.training for module in net.modules()] == modes
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_modes_come_back_after_a_failure():
    net = nn.Sequential(nn.Linear(3, 5), nn.Dropout()).train()
    with pytest.raises(RuntimeError):
        count_flops(net, torch.randn(4, 4))
    assert all(module.training for module in net.modules())
    assert torch.is_grad_enabled()


def test_flops_per_input_divides_by_the_batch():
    assert flops_per_input(nn.Linear(3, 5), torch.randn(7, 3)) == Cost(2 * 3 * 5 / 1e6, "MFLOPs")
    with pytest.raises(InputError, match="empty"):
        flops_per_input(nn.Linear(3, 5), torch.randn(0, 3))


# ---------------------------------------------------------------- time


def test_latency_is_the_median_with_quartiles_in_ms():
    latency = Latency.from_seconds([0.001, 0.002, 0.003, 0.004, 0.005])
    assert float(latency.low) == pytest.approx(2.0)
    assert float(latency.median) == pytest.approx(3.0)
    assert float(latency.high) == pytest.approx(4.0)
    assert latency.median.unit == "ms"
    assert latency.repeats == 5


def test_measuring_calls_warmup_and_repeats_without_gradients():
    calls = []
    latency = measure_latency(
        lambda x: calls.append(torch.is_grad_enabled()), 1, warmup=2, repeats=4
    )
    assert calls == [False] * 6
    assert latency.repeats == 4
    assert Cost(0.0, "ms") <= latency.low <= latency.median <= latency.high


def test_what_is_compared_is_interleaved():
    calls = []
    runs = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    assert set(compare_latency(runs, warmup=1, repeats=2)) == {"a", "b"}
    assert calls == ["a", "b"] * 3


def test_at_least_one_call_is_counted():
    with pytest.raises(InputError, match="repeats=0"):
        measure_latency(lambda: None, repeats=0)
