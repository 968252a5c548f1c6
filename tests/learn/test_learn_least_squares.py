import pytest
import torch
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.learn import LeastSquaresGate, k_means


def grouped(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Thirty contexts in three separated groups, and their groups."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(3).repeat_interleave(10)
    centres = 3.0 * torch.randn(3, 8, generator=generator)
    return centres[group] + 0.2 * torch.randn(30, 8, generator=generator), group


def test_a_sound_fit_reproduces_the_groups_and_gives_each_its_best_branch() -> None:
    fitted = 0
    for seed in range(30):
        torch.manual_seed(seed)
        contexts, group = grouped(seed)
        gate = LeastSquaresGate(8, 3)
        best = torch.randperm(3)
        losses = torch.ones(30, 3) - 0.5 * torch.nn.functional.one_hot(best[group], 3)
        before = gate.weight.clone()
        if not gate.fit(contexts, losses):
            assert torch.equal(gate.weight, before)
            continue
        members = k_means(contexts, gate.centres).members
        if len({(int(m), int(g)) for m, g in zip(members, group, strict=True)}) != 3:
            continue  # groups were mixed by the clustering
        fitted += 1
        assert torch.equal(gate(contexts).argmax(1), best[group])
    assert fitted >= 5


def test_branches_are_matched_one_to_one_even_where_one_is_best_everywhere() -> None:
    contexts, group = grouped(0)
    gate = LeastSquaresGate(8, 3)
    gate.centres.copy_(torch.stack([contexts[group == g].mean(0) for g in range(3)]))
    losses = torch.tensor([0.0, 1.0, 2.0]).expand(30, 3)
    assert gate.fit(contexts, losses)
    assert torch.equal(gate(contexts).argmax(1), group)


def test_k_means_by_hand() -> None:
    rows = torch.tensor([[0.0], [1.0], [9.0], [11.0]])
    found = k_means(rows, torch.tensor([[2.0], [8.0]]))
    assert found.members.tolist() == [0, 0, 1, 1]
    assert found.centres.flatten().tolist() == [0.5, 10.0]
    assert found.sound
    empty = k_means(rows, torch.tensor([[5.0], [500.0]]))
    assert not empty.sound
    assert empty.centres[1].item() == 500.0
    assert not k_means(rows, torch.tensor([[-50.0], [8.0]]), rounds=1).sound


def test_the_gate_reads_the_first_features_and_has_nothing_to_train() -> None:
    gate = LeastSquaresGate(2, 3).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    assert_close(gate(x), gate(torch.cat([x[:, :2], torch.randn(5, 2).double()], 1)))
    assert gate(x[:0]).shape == (0, 3)
    assert gate(x).dtype == torch.float64
    assert not list(gate.parameters())
    assert set(gate.state_dict()) == {"weight", "centres"}
    assert not gate.fit(torch.zeros(0, 2), torch.zeros(0, 3))


def test_what_does_not_fit_is_refused() -> None:
    gate = LeastSquaresGate(2, 3)
    with pytest.raises(InputError, match=r"the first 2 features are the context, got \(5, 1\)"):
        gate(torch.randn(5, 1))
    with pytest.raises(InputError, match=r"losses \(M, 3\), got \(4, 2\) and \(4, 2\)"):
        gate.fit(torch.randn(4, 2), torch.randn(4, 2))
    with pytest.raises(InputError, match="must be finite"):
        gate.fit(torch.full((4, 2), torch.nan), torch.randn(4, 3))
    with pytest.raises(InputError, match="at least 1, got 0 and 3"):
        LeastSquaresGate(0, 3)
