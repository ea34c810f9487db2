"""Several ways to solve a problem: in words, by a program, and by steps that are checked before they are built upon.

    text         step by step in words
    code         a program, which is run in the sandbox; its last printed line is the answer
    cumulative   a step at a time, with code; a step that is not found right is forgotten

A step is right where its program runs, its sums are true, and the model finds yes likelier after a question about it
than after the same question about an empty step: what a model says to nothing is its own leaning, by which its answers
are calibrated (arXiv 2102.09690).

Source: diverse prompting (arXiv 2410.09780) and cumulative reasoning (arXiv 2308.04371). Differs from them: a step is
checked as above, and not by a text of the model's. What is shared, the problem in a method's template, is read once;
the runs go on from copies, together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from reference import CHUNK, Policy, Sampling
from reference.checks import one_of, require, whole
from thresher.answers.sandbox import ProgramError
from thresher.answers.sandbox import run as run_program
from thresher.answers.sums import sums_are_true
from thresher.answers.yes import yes
from thresher.evaluation.samples import Ask, prompt
from thresher.evaluation.scorers.maths import final_answer
from thresher.generate import Answer, Settings, run
from thresher.model import LanguageModel
from thresher.state import State

# A small model copies a word that stands for the answer, and takes an example's things for those of the problem: so the
# box is empty.
TEXT = "Solve the problem step by step, and put the final answer within \\boxed{{}}.\n\nProblem: {problem}"
CODE = (
    "Write a Python program that solves the problem and prints the answer and nothing else. Answer with the program "
    "alone, between ```python and ```.\n\nProblem: {problem}"
)
CUMULATIVE = (
    "Solve the problem in short steps, one sentence each, numbered Step 1, Step 2 and so on. A step may be a program "
    "between ```python and ```, which prints its result. The last step has the final answer within \\boxed{{}}.\n\n"
    "Problem: {problem}"
)
ANSWER = "The final answer is \\boxed{"
CHECK = (
    "Problem: {problem}\n\nSteps so far:\n{steps}\n\nProposed next step: {step}\n\nIs the proposed step right? Answer "
    "yes or no."
)
PROGRAM = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
STEPS, STEP_TOKENS = 6, 96  # proposals of a run, and tokens of one
NOTHING = "none"  # an empty list of steps, and an empty step


@dataclass(frozen=True)
class Solver:
    """A model that tries a problem again and again.

    temperature: 0.7 is the paper's. max_new_tokens: of a run in words or of a program.
    """

    llm: LanguageModel
    policy: Policy | None = None
    temperature: float = 0.7
    max_new_tokens: int = 320
    places: int = 8
    chunk: int = CHUNK

    def answers(self, method: str, problem: str, seeds: Sequence[int]) -> list[str]:
        """What each run of one of METHODS comes to, "" where it comes to nothing. The same seed, the same run."""
        one_of("method", method, METHODS)
        return METHODS[method](self, problem, seeds)

    def text(self, problem: str, seeds: Sequence[int]) -> list[str]:
        """Step by step in words."""
        return [final_answer(text) for text in self._draw([self._read(TEXT, problem)] * len(seeds), seeds)]

    def code(self, problem: str, seeds: Sequence[int]) -> list[str]:
        """What programs print last."""
        texts = self._draw([self._read(CODE, problem)] * len(seeds), seeds)
        return [_printed(program_of(text) or text) for text in texts]

    def cumulative(self, problem: str, seeds: Sequence[int]) -> list[str]:
        """Steps that are checked, kept and built upon; after STEPS proposals without an answer, the answer alone."""
        start = self._read(CUMULATIVE, problem)
        kept: list[list[str]] = [[] for _ in seeds]
        done = [False] * len(seeds)
        for proposal in range(STEPS):
            active = [n for n in range(len(seeds)) if not done[n]]
            states = [self._go_on(start, f"{_told(kept[n])}Step {len(kept[n]) + 1}:") for n in active]
            numbers = [seeds[n] * STEPS + proposal for n in active]
            drawn = self._draw(states, numbers, STEP_TOKENS, "\nStep ")
            for n, text in zip(active, drawn, strict=True):
                step = _with_output(text.strip(), kept[n])
                if step and self._right(problem, kept[n], step):
                    kept[n].append(f"Step {len(kept[n]) + 1}: {step}")
                    done[n] = "\\boxed" in step
        late = [n for n in range(len(seeds)) if not done[n]]
        states = [self._go_on(start, f"{_told(kept[n])}{ANSWER}") for n in late]
        drawn = self._draw(states, [seeds[n] for n in late], STEP_TOKENS, "\n")
        ends = dict(zip(late, drawn, strict=True))
        return [final_answer(f"{ANSWER}{ends[n]}" if n in ends else kept[n][-1]) for n in range(len(seeds))]

    def _right(self, problem: str, steps: Sequence[str], step: str) -> bool:
        """Whether the sums of a step are true, and yes is likelier after it than after an empty step."""
        if not sums_are_true(step):
            return False
        asked = CHECK.format(problem=problem, steps="\n".join(steps) or NOTHING, step="{step}")
        found, leaning = (yes(self.llm, self._ask(asked.replace("{step}", each))) for each in (step, NOTHING))
        return found > leaning

    def _read(self, template: str, problem: str) -> State:
        return self._ask(template.format(problem=problem))

    def _ask(self, question: str) -> State:
        head, tail = prompt(self.llm, "", Ask(question, ()))
        return self.llm.prefill(head + tail, self.policy, chunk=self.chunk)

    def _go_on(self, state: State, text: str) -> State:
        ids = self.llm.tokenizer.encode(text, add_special_tokens=False).ids
        return self.llm.prefill(ids, state=state.copy(), chunk=self.chunk)

    def _draw(
        self, states: Sequence[State], seeds: Sequence[int], max_new_tokens: int | None = None, stop: str = ""
    ) -> list[str]:
        """A text per state, each drawn by its own seed, from copies that go through the model together."""
        drawing, most = Sampling(temperature=self.temperature), max_new_tokens or self.max_new_tokens
        answers = [
            Answer(
                self.llm, state.copy(), [], Settings(drawing, seed, [stop] if stop else [], most, 0, self.chunk, None)
            )
            for state, seed in zip(states, seeds, strict=True)
        ]
        texts = [""] * len(answers)
        for n, piece in run(answers, whole("places", self.places)):
            texts[n] += piece
        return texts


METHODS: dict[str, Callable[[Solver, str, Sequence[int]], list[str]]] = {
    "text": Solver.text,
    "code": Solver.code,
    "cumulative": Solver.cumulative,
}


def program_of(text: str) -> str:
    """The last program between fences, "" where there is none."""
    found = PROGRAM.findall(text)
    return found[-1] if found else ""


def check_methods(names: Sequence[str]) -> list[str]:
    """The names, once each is known and none stands twice."""
    for name in names:
        one_of("methods", name, METHODS)
    require(bool(names) and len(set(names)) == len(names), f"methods: got {','.join(names)}, wanted each method once")
    return list(names)


def seeds_of(seed: int, problem: int, method: str, runs: int) -> list[int]:
    """The seeds of the runs of a method on a problem: they follow from these alone, whatever else is run."""
    place = [seed, problem, list(METHODS).index(method)]
    return [int(x) for x in np.random.default_rng(place).integers(1 << 40, size=whole("runs", runs))]


def _printed(program: str) -> str:
    """The last line that a program prints, "" where it fails."""
    try:
        lines = run_program(program).split("\n")
    except ProgramError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return final_answer(last) or last


def _with_output(step: str, earlier: Sequence[str]) -> str:
    """A step up to the end of its program, and what that prints, run after the programs of the earlier steps; "" where
    it fails. What a model writes after its program is often an output that it made up."""
    found = PROGRAM.search(step)
    if not found:
        return " ".join(step.split())
    before = "".join(f"{program_of(each)}\n" for each in earlier)
    try:
        printed = run_program(before + found[1]).removeprefix(run_program(before) if before else "")
    except ProgramError:
        return ""
    return f"{step[: found.start()]}```python\n{found[1].rstrip()}\n```\nOutput: {printed.strip()}"


def _told(steps: Sequence[str]) -> str:
    return "".join(f"{step}\n" for step in steps)
