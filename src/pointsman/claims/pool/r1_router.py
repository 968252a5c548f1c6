"""R1-Router: which knowledge base to ask next, learned from a reward for every step.

Peng et al., "Learning to Route Queries Across Knowledge Bases for Step-wise Retrieval-Augmented
Reasoning" (2025, arXiv 2505.22095).

A question is answered in up to three retrievals: plan a sub-question and a base, answer it from
what came back, and so on until the plan is to end. Step-GRPO makes every step of a teacher's way a
prompt of its own, with a group of outputs, a reward and advantages within that group. The parts:
`pool.reasoning.tags` and `.rewards` read and judge what is written, `.retrieval.KnowledgeBases` is
the world, `.stepwise.StepwiseRouter` learns, on `learn.policy_gradient`.

What was settled:
- No language model runs. A question asks for two of three attributes in order, each kept in one of
  three bases; the policy sees a noisy one-hot view of the question, the turn, and what was asked
  for last. It writes plans and answers in the paper's tags, of which one is a broken format; the
  similarity of sub-questions is the cosine of their groups of letters in place of embeddings.
- Groups of 8 outputs and 16 questions an update, for both ways to learn. Step by step takes five
  groups a question and a whole trajectory up to seven decisions, so they see about as many.
- Routing accuracy: the share of the two retrievals needed that went to the right base, when the
  policy goes its own way through new questions with its likeliest actions. Whether it ends in time
  is not part of it, because the final reward does not ask for that; retrievals are counted beside
  it. It is looked at every five updates, and what counts is the first update from which 90% is
  reached.
- Learning from trajectories has the better of three rates (0.01, 0.03, 0.1), chosen on seeds from
  100 on; step by step has the first of them. Trajectories are given up after 600 updates, which
  then stands for the number needed.
- Step-GRPO knows a teacher's way, and the trajectory learner does not. Plain imitation of the same
  teacher is therefore measured, too; it decides nothing here.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

GOAL, EVERY, MOST = 0.9, 5, 600
QUESTIONS = 500
LEVELS = {"step": 0.01, "trajectory": 0.03, "imitation": 0.01}  # with the rate of each


def quick() -> None:
    """Rewards follow the rules; groups are normal by themselves; the teacher's way earns all."""
    import numpy as np
    import torch

    from pointsman.learn.policy_gradient import group_advantages
    from pointsman.pool.reasoning.retrieval import BASES, KnowledgeBases
    from pointsman.pool.reasoning.rewards import answer_reward, plan_reward
    from pointsman.pool.reasoning.stepwise import StepwiseRouter
    from pointsman.pool.reasoning.tags import Breach, Plan, parse_plan

    def same(first: str, second: str) -> float:
        return float(first == second)

    teacher = Plan("who wrote it?", BASES[0])
    must(plan_reward(Plan("where?", BASES[0]), teacher, same) == 0.5, "the right base is half")
    must(plan_reward(Plan("who wrote it?", BASES[1]), teacher, same) == 0.5, "so is the question")
    must(plan_reward(Breach("no tag"), teacher, same) == 0, "a broken format earns nothing")
    must(answer_reward("Ada", ["Ada Lovelace"]) == 0, "a short answer counts in full only")
    must(answer_reward("a b c", ["a b c d e f"]) == 0.5, "a long one by the words recalled")
    rewards = torch.tensor([0.0, 1.0, 10.0, 30.0], dtype=torch.float64)
    found = group_advantages(rewards, torch.tensor([0, 0, 1, 1]))
    must(found.tolist() == [-1, 1, -1, 1], "a step is compared with its own group alone")
    world = KnowledgeBases()
    must(isinstance(parse_plan(world.write(world.broken), BASES), Breach), "one plan is broken")
    questions = world.questions(50, np.random.default_rng(0))
    for turn in world.gold(questions):
        best = turn.rewards[np.arange(50), turn.teacher]
        must(bool(np.allclose(best, 1)), "what the teacher does earns all there is")
    router = StepwiseRouter().fit(world, 1)
    before = world.play(questions, router.choose).routed.mean()
    after = world.play(questions, router.more(world, 40).choose).routed.mean()
    must(after > before, "routing gets better step by step")


def full(seed: int) -> Figures:
    """Updates until 90% of the bases are right, and where each way to learn ends."""
    import numpy as np

    from pointsman.pool.reasoning.retrieval import KnowledgeBases
    from pointsman.pool.reasoning.stepwise import Level, StepwiseRouter

    world = KnowledgeBases(seed=seed)
    questions = world.questions(QUESTIONS, np.random.default_rng(seed + 10_000))
    found: dict[str, float] = {}
    levels: tuple[Level, ...] = ("step", "trajectory", "imitation")
    for level in levels:
        router = StepwiseRouter(level=level, rate=LEVELS[level], seed=seed).fit(world, EVERY)
        played = world.play(questions, router.choose)
        while played.routed.mean() < GOAL and router.updates_ < MOST:
            played = world.play(questions, router.more(world, EVERY).choose)
        found[f"{level}: updates"] = float(router.updates_)
        found[f"{level}: bases right"] = float(played.routed.mean())
        found[f"{level}: answers right"] = float(played.right.mean())
        found[f"{level}: retrievals"] = float(played.looked.mean())
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion."""
    reached = all(figures["step: bases right"] >= GOAL for figures in measurements)
    step, trajectory = (mean(measurements, f"{level}: updates") for level in ("step", "trajectory"))
    return reached and step <= trajectory / 2


CLAIM = Claim(
    slug="r1-router",
    paper="Learning to Route Queries Across Knowledge Bases for Step-wise Retrieval-Augmented "
    "Reasoning",
    year=2025,
    arxiv="2505.22095",
    level="pool",
    claim="A reward for every step, compared within the step's own group, teaches a policy which "
    "knowledge base to ask next sooner than the final reward of whole trajectories.",
    baseline="Group-relative policy optimisation of whole trajectories with the final reward only, "
    "with as many questions and outputs a question; beside it imitation of the teacher.",
    criterion="On questions about two of three attributes over three knowledge bases: learning "
    "step by step reaches 90% routing accuracy for every seed, and in the mean over seeds in no "
    "more than half of the updates that whole trajectories need.",
    quick=quick,
    full=full,
    decide=decide,
    composition="tags parsed · rewards of plans and of answers · groups by step · clipped policy "
    "gradient with a divergence from the start · three knowledge bases",
    entry="pointsman.pool.reasoning.stepwise.StepwiseRouter",
    key={
        "updates, by step": "step: updates",
        "by trajectory": "trajectory: updates",
        "imitation": "imitation: updates",
    },
)
