"""Questions over knowledge bases: the teacher is right, rewards are the rules', learning learns."""

import numpy as np
import pytest
import torch

from pointsman.errors import InputError
from pointsman.pool.reasoning.retrieval import ATTRIBUTES, BASES, FIELDS, KnowledgeBases, alike
from pointsman.pool.reasoning.stepwise import StepwiseRouter
from pointsman.pool.reasoning.tags import Breach, parse_plan


def by_teacher(world, questions, *, spoil=None):
    """Plays as the teacher does; `spoil` may change the actions of a kind of turn."""
    turns = iter(world.gold(questions))

    def choose(kind, states, alive):
        turn = next(turns, None)
        if turn is None:
            return np.full(len(states), world.end if kind == "plan" else 0)
        if kind != turn.kind:  # the teacher has ended, and its end is not an answer
            return np.zeros(len(states), dtype=np.int64)
        if spoil is not None:
            return spoil(kind, turn.teacher)
        np.testing.assert_allclose(states[alive], turn.states[alive])
        return turn.teacher

    return world.play(questions, choose)


@pytest.mark.parametrize("attributes", [1, 2, 3])
def test_the_teacher_is_always_right_and_its_states_are_those_of_playing(attributes):
    world = KnowledgeBases(attributes=attributes, seed=attributes)
    questions = world.questions(30, np.random.default_rng(0))
    right, routed, looked = by_teacher(world, questions)
    assert right.tolist() == [1] * 30
    assert routed.tolist() == [1] * 30
    assert looked.tolist() == [attributes] * 30


def test_every_turn_of_the_teacher_earns_all_there_is():
    world = KnowledgeBases()
    for turn in world.gold(world.questions(20, np.random.default_rng(0))):
        rows = np.arange(20)
        np.testing.assert_allclose(turn.rewards[rows, turn.teacher], 1)
        assert turn.rewards.max() == pytest.approx(1)
        assert (turn.states.shape, turn.rewards.shape[1]) == (
            (20, world.width),
            world.actions[turn.kind],
        )


def test_a_wrong_field_or_base_spoils_the_answer_and_only_the_base_spoils_the_routing():
    world = KnowledgeBases()
    questions = world.questions(30, np.random.default_rng(1))
    right, routed, _ = by_teacher(
        world, questions, spoil=lambda kind, a: a if kind == "plan" else (a + 1) % FIELDS
    )
    assert right.sum() == 0
    assert (routed == 1).all()

    def other_base(kind, actions):
        if kind == "answer":
            return actions
        moved = actions // len(BASES) * len(BASES) + (actions + 1) % len(BASES)
        return np.where(actions == world.end, actions, moved)

    right, routed, looked = by_teacher(world, questions, spoil=other_base)
    assert right.sum() == 0
    assert routed.sum() == 0
    assert (looked == 2).all()


def test_ending_early_and_broken_formats_stop_the_episode():
    world = KnowledgeBases()
    questions = world.questions(5, np.random.default_rng(0))
    for plan in (world.end, world.broken):
        played = world.play(questions, lambda kind, s, alive, plan=plan: np.full(5, plan))
        assert not np.any(played)


def test_looking_up_more_than_needed_costs_retrievals_and_not_the_answer():
    world = KnowledgeBases()
    questions = world.questions(20, np.random.default_rng(0))
    turns = iter(world.gold(questions))

    def never_ends(kind, states, alive):
        turn = next(turns, None)
        if turn is None or kind != turn.kind:
            return np.zeros(20, dtype=np.int64)
        return (
            np.where(turn.teacher == world.end, 0, turn.teacher)
            if kind == "plan"
            else (turn.teacher)
        )

    right, routed, looked = world.play(questions, never_ends)
    assert (right == 1).all()
    assert (routed == 1).all()
    assert (looked == 3).all()


def test_plans_are_written_in_the_tags_and_earn_by_the_rules():
    world = KnowledgeBases(seed=3)
    assert isinstance(parse_plan(world.write(world.broken), BASES), Breach)
    assert world.plan_rewards[world.broken].tolist() == [0] * 4
    assert world.plan_rewards[world.end, -1] == 1
    for attribute in range(len(ATTRIBUTES)):
        home = int(world.home[attribute])
        good = attribute * len(BASES) + home
        elsewhere = attribute * len(BASES) + (home + 1) % len(BASES)
        assert world.plan_rewards[good, attribute] == pytest.approx(1)
        assert world.plan_rewards[elsewhere, attribute] == pytest.approx(0.5)
        other = (attribute + 1) % len(ATTRIBUTES)
        same_base = other * len(BASES) + home
        wanted = 0.5 * alike(ATTRIBUTES[other], ATTRIBUTES[attribute]) + 0.5
        assert world.plan_rewards[same_base, attribute] == pytest.approx(wanted)
    assert alike("", "") == 1
    assert alike("a town", "") == 0


def accuracy(router, world):
    return world.play(world.questions(300, np.random.default_rng(9)), router.choose).routed.mean()


@pytest.mark.parametrize("level", ["step", "imitation"])
def test_steps_are_learned(level):
    world = KnowledgeBases()
    router = StepwiseRouter(level=level).fit(world, 1)
    before = accuracy(router, world)
    after = accuracy(router.more(world, 80), world)
    assert router.updates_ == 81
    assert before < 0.6
    assert after > 0.85


def test_whole_trajectories_are_learned_from_their_end():
    world = KnowledgeBases(attributes=1)
    router = StepwiseRouter(level="trajectory", rate=0.03).fit(world, 100)
    assert accuracy(router, world) > 0.7


def test_decisions_after_the_end_of_a_trajectory_teach_nothing():
    world = KnowledgeBases()
    router = StepwiseRouter(level="trajectory", batch=8, group=4).fit(world, 1)
    questions = world.questions(8, np.random.default_rng(0))
    taken, advantage = router._decisions(world, questions)
    sizes = [len(actions) for _, _, actions in taken]
    assert sum(sizes) == len(advantage)
    assert sizes[0] == 32
    assert sizes[-1] < 32
    with torch.no_grad():
        assert torch.isfinite(router._log_probs(taken, router.policies_)).all()


def test_wrong_keywords_are_refused():
    with pytest.raises(InputError, match="1 to 3 attributes, got 4"):
        KnowledgeBases(attributes=4)
    with pytest.raises(InputError, match="level is"):
        StepwiseRouter(level="episode").fit(KnowledgeBases(), 1)
    with pytest.raises(InputError, match="two outputs at least"):
        StepwiseRouter(group=1).fit(KnowledgeBases(), 1)
