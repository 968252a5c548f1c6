"""Flow through a graph of states: against all paths one by one, and the reduction by it."""

from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.relax.flow import Edge, StateGraph, edge_flow, edges_within


def brute_force(
    read_in: Tensor, read_out: Tensor, edges: list[Edge], weights: Tensor
) -> tuple[Tensor, float]:
    """Sums over every increasing sequence of states all of whose steps are edges."""
    weight = dict(zip(edges, weights.tolist(), strict=True))
    through, total = dict.fromkeys(edges, 0.0), 0.0
    for length in range(1, len(read_in) + 1):
        for path in combinations(range(len(read_in)), length):
            steps = list(pairwise(path))
            if all(step in weight for step in steps):
                flow = float(read_in[path[0]] * read_out[path[-1]])
                for step in steps:
                    flow *= weight[step]
                total += flow
                for step in steps:
                    through[step] += flow
    return torch.tensor(list(through.values()), dtype=torch.float64), total


@pytest.mark.parametrize(("states", "reach"), [(2, 1), (4, 2), (5, 4), (6, 1), (6, 3), (6, 5)])
def test_flow_is_the_sum_over_all_paths(states: int, reach: int) -> None:
    generator = torch.Generator().manual_seed(states + 10 * reach)
    edges = edges_within(states, reach)
    read_in, read_out, weights = (
        torch.rand(size, generator=generator, dtype=torch.float64)
        for size in (states, states, len(edges))
    )
    weights[0] = 0
    through, total = edge_flow(read_in, read_out, edges, weights)
    expected, whole = brute_force(read_in, read_out, edges, weights)
    torch.testing.assert_close(through, expected)
    assert float(total) == pytest.approx(whole)


def test_a_reach_of_one_is_a_chain_and_a_full_reach_has_every_pair() -> None:
    assert edges_within(4, 1) == [(0, 1), (1, 2), (2, 3)]
    assert sorted(edges_within(4, 3)) == list(combinations(range(4), 2))
    with pytest.raises(InputError, match="two states or more"):
        edges_within(1, 1)
    with pytest.raises(InputError, match="reach of 1"):
        edges_within(3, 0)


def graph(states: int = 4, reach: int = 3, tasks: int = 2) -> StateGraph:
    torch.manual_seed(0)
    found = StateGraph(states, reach, tasks, lambda: nn.Linear(3, 3, bias=False).double())
    generator = torch.Generator().manual_seed(1)
    for parameter in found.architecture.values():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return found


def test_with_identities_on_the_edges_the_output_is_the_flow_times_the_input() -> None:
    shared = graph()
    for operation in shared.operations.values():
        nn.init.eye_(operation.weight)
    x = torch.ones(2, 3, dtype=torch.float64)
    for task in range(2):
        read_in, read_out, weights = shared.weights(task)
        total = edge_flow(read_in, read_out, shared.edges, weights)[1]
        torch.testing.assert_close(shared(x, task), total * x)


def test_tasks_share_operations_and_have_architectures_of_their_own() -> None:
    shared = graph()
    shared(torch.rand(2, 3, dtype=torch.float64), 1).sum().backward()
    for parameter in shared.architecture.values():
        assert not parameter.grad[0].any()
        assert parameter.grad[1].any()
    assert all(p.grad is not None for p in shared.shared_parameters())


def test_a_task_keeps_its_strongest_ends_and_runs_only_what_is_between() -> None:
    shared = graph(states=5)
    with torch.no_grad():
        shared.architecture["read_in"][0] = torch.tensor([0.0, 1.0, 0.5, 0.0, 9.0])
        shared.architecture["read_out"][0] = torch.tensor([9.0, 3.0, 0.0, 2.0, 1.0])
    shared.settle()
    read_in, read_out, _ = (part.detach().tolist() for part in shared.weights(0))
    assert read_in == [0, 1, 0, 0, 0]
    assert read_out == [0, 0, 0, 1, 0]
    ran: list[Edge] = []
    for edge in shared.edges:
        hook = lambda *_, edge=edge: ran.append(edge)  # noqa: E731
        shared.operations[f"{edge[0]}-{edge[1]}"].register_forward_hook(hook)
    shared(torch.rand(1, 3, dtype=torch.float64), 0)
    assert ran == [(i, j) for i, j in shared.edges if 1 <= i < j <= 3]


def test_reduction_deletes_the_least_flow_first_and_keeps_a_path_for_every_task() -> None:
    shared = graph()
    shared.settle()
    least = shared.edges[int(shared.flows().amax(dim=0).argmin())]
    gone = shared.reduce(100)
    assert gone[0] == least
    x = torch.rand(1, 3, dtype=torch.float64)
    assert shared(x, 0).any()
    assert shared(x, 1).any()
    left = [edge for edge, kept in zip(shared.edges, shared.kept_E, strict=True) if kept]
    assert set(left) == set(shared.edges) - set(gone)
    assert len(shared.operations) == len(left)
    for at in shared.kept_E.nonzero().flatten().tolist():  # none can be spared
        assert shared.flows()[:, at].max() == pytest.approx(1)


def test_an_edge_that_carries_nothing_for_a_task_changes_nothing_when_it_goes() -> None:
    shared = graph(tasks=1)
    shared.settle()
    x = torch.rand(2, 3, dtype=torch.float64)
    before = shared(x, 0)
    idle = int((shared.flows()[0] == 0).sum())
    shared.reduce(idle)
    torch.testing.assert_close(shared(x, 0), before)


def test_edges_go_in_another_order_if_told_so() -> None:
    shared = graph(states=5)
    ranks = [-float(at) for at in range(len(shared.edges))]
    assert shared.reduce(2, lambda: ranks) == list(reversed(shared.edges))[:2]


def test_the_squeeze_counts_each_edge_by_the_task_that_uses_it_most() -> None:
    shared = graph()
    gates = shared.architecture["edges"].detach().sigmoid().amax(dim=0).sum()
    torch.testing.assert_close(shared.squeeze(0.0), gates)
    torch.testing.assert_close(shared.squeeze(0.1), gates - 0.1 * len(shared.edges))
    assert float(shared.squeeze(1.0).detach()) == 0
