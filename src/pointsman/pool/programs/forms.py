"""Known forms of reasoning as programs of texts.

Dohan et al., "Language Model Cascades" (2022, arXiv 2207.10342): each is a few lines over
`Run.sample`, so that one set of inference methods serves all.
"""

from collections.abc import Callable, Sequence

from pointsman.errors import InputError
from pointsman.pool.programs.program import Distribution, Program, Run

VERDICT = "verdict"


def chain_of_thought(
    question: str,
    think: Callable[[str], Distribution],
    answer: Callable[[str, str], Distribution],
    verify: Callable[[str, str, str], Distribution] | None = None,
) -> Program:
    """Question to thought to answer, and to the verdict of a verifier if there is one.

    Variables: "thought", "answer" and "verdict". Conditioned on the verdict, as in
    `ancestral(program, 10, given={"verdict": "right"})`, runs are weighed by the verifier.

    Args:
        question: what is asked.
        think: question to thought.
        answer: question and thought to answer.
        verify: question, thought and answer to verdict.
    """

    def program(run: Run) -> str:
        thought = run.sample("thought", think(question))
        found = run.sample("answer", answer(question, thought))
        if verify is not None:
            run.sample(VERDICT, verify(question, thought, found))
        return found

    return program


def selection_inference(
    question: str,
    facts: Sequence[str],
    select: Callable[[str, Sequence[str]], Distribution],
    infer: Callable[[str], Distribution],
    answer: Callable[[str, Sequence[str]], Distribution],
    *,
    steps: int,
) -> Program:
    """Pick from the facts, infer one more from the pick, and so on; then answer from them all.

    Creswell et al., "Selection-Inference: Exploiting Large Language Models for Interpretable
    Logical Reasoning" (2022, arXiv 2205.09712). Variables: "selection 1", "inference 1", … and
    "answer".

    Args:
        question: what is asked.
        facts: known at the start.
        select: question and facts so far to a selection.
        infer: the selection alone to a new fact, so that nothing else can leak into it.
        answer: question and all facts to the answer.
        steps: rounds, at least 1.

    Raises:
        InputError: no step.
    """
    if steps < 1:
        raise InputError(f"selection and inference take at least one step, got {steps}")

    def program(run: Run) -> str:
        known = list(facts)
        for step in range(1, steps + 1):
            picked = run.sample(f"selection {step}", select(question, tuple(known)))
            known.append(run.sample(f"inference {step}", infer(picked)))
        return run.sample("answer", answer(question, tuple(known)))

    return program
