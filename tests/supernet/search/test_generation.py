import numpy as np
import pytest
import torch

from pointsman.errors import InputError
from pointsman.supernet.search.engines.diffusion import diffusion_search
from pointsman.supernet.search.generation import GenotypeDiffusion
from pointsman.supernet.search.problem import Problem
from pointsman.supernet.search.run import search
from pointsman.supernet.space import Choice, Space

SPACE = Space([Choice(name, ("a", "b", "c")) for name in ("one", "two", "three")])


def examples(count=300):
    rng = np.random.default_rng(0)
    return [(0, *SPACE.sample(rng)[1:]) for _ in range(count)]


@pytest.fixture(scope="module")
def diffusion():
    genotypes = examples()
    wanted = [float(genotype[1] == 2) for genotype in genotypes]
    return GenotypeDiffusion(SPACE, updates=100).fit(genotypes).fit_guide(genotypes, wanted)


def share(genotypes, place, taken):
    return np.mean([genotype[place] == taken for genotype in genotypes])


def test_without_guidance_genotypes_are_distributed_as_learned(diffusion):
    drawn = diffusion.genotypes(diffusion.sample(150))
    assert None not in drawn
    assert share(drawn, 0, 0) > 0.95
    assert 0.2 < share(drawn, 1, 2) < 0.47


def test_guidance_tilts_towards_quality(diffusion):
    drawn = [g for g in diffusion.genotypes(diffusion.sample(100, guidance=3.0)) if g]
    assert len(drawn) > 90
    assert share(drawn, 1, 2) > 0.8


def test_one_seed_gives_one_sample(diffusion):
    assert torch.equal(diffusion.sample(5, seed=1), diffusion.sample(5, seed=1))
    assert not torch.equal(diffusion.sample(5, seed=1), diffusion.sample(5, seed=2))


def test_a_vector_that_is_not_clear_stands_for_nothing():
    vectors = torch.tensor([[0, 1, 0, 1, 0, 0, 0, 0, 1], [0.4, 0.4, 0.2, 1, 0, 0, 0, 0, 1.0]])
    assert GenotypeDiffusion(SPACE).genotypes(vectors) == [(1, 0, 2), None]


def test_dependent_choices_are_refused():
    space = Space([Choice("a", (1, 2)), Choice("b", (1, 2), when=("a", (1,)))])
    with pytest.raises(InputError, match="every choice always matters"):
        GenotypeDiffusion(space)


def test_a_guide_learns_from_numbers():
    with pytest.raises(InputError, match="one number for each of 1"):
        GenotypeDiffusion(SPACE).fit_guide([(0, 0, 0)], [float("nan")])


def test_as_an_engine_it_evaluates_nothing_twice_within_the_budget():
    asked = []

    def quality(genotype):
        asked.append(genotype)
        if genotype[2] == 2:
            raise RuntimeError("broken")
        return float(genotype[0])

    def engine(problem, seed):
        return diffusion_search(problem, seed, first=6, batch=4, updates=10)

    problem = Problem(SPACE, quality, lambda g: float(sum(g)), budget=4)
    history = search(problem, engine, 10, seed=2)
    assert len(asked) == len(set(asked)) == len(history) == 10
    assert max(each.cost for each in history) <= 4
    again = search(problem, engine, 10, seed=2)
    assert [each.genotype for each in again] == [each.genotype for each in history]
