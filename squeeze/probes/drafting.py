"""Hold what an engine says by guessing against what it says without, token for token, and time both side by side.

Guesses must change nothing (`squeeze.runtimes.speculative`), so one token that is not that of plain greedy decoding
makes a row invalid. In 16 bits rounding alone may do that: a forward of several tokens sums in another order than one
of each, and of two tokens that are as likely the other one comes out; what it is then is said. In float32 it does not
happen but in one of very many tokens, so that rows of dtype=float32 are the control.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from squeeze.core.errors import IntegrityError
from squeeze.models import architecture
from squeeze.probes import teacher_forced
from squeeze.runtimes.contract import DraftingEngine, Engine, Generation, Step, shows_model

TOKENS = 48  # that are chosen behind each prompt, the first among them
PIECE = 8  # tokens that one way decodes before it is the other's turn
WARMING = 4  # tokens that both ways decode before anything is timed

Clock = Callable[[], float]


@dataclass(frozen=True)
class Compared:
    """Hold what both ways took for the same text.

    plain_s, drafted_s: seconds a token, without guesses and with them. steps: of the way that guesses.
    """

    plain_s: float
    drafted_s: float
    steps: Sequence[Step]

    def figures(self) -> dict[str, Any]:
        """Return what a process's samples keep of it, by the names of ``records.drafting``."""
        return {
            "plain_s": self.plain_s,
            "drafted_s": self.drafted_s,
            "steps": len(self.steps),
            "drafted": sum(step.drafted for step in self.steps),
            "accepted": sum(step.accepted for step in self.steps),
        }


def warm(engine: DraftingEngine, prompt: Tensor) -> None:
    """Let both ways decode a little behind a prompt, (1, tokens) int64: what is compiled by then is not timed."""
    for each in (engine.undrafted, engine):
        continued(each, prompt, WARMING)


def continued(engine: Engine, prompt: Tensor, tokens: int) -> list[list[int]]:
    """Return the tokens that an engine chooses behind a prompt, (rows, tokens) int64: so many for each row."""
    generation = engine.begin(prompt.shape[1] + tokens)
    chosen = generation.prefill(prompt).shape[1]
    while chosen < tokens:
        chosen += generation.decode().shape[1]
    return [row[:tokens] for row in generation.token_ids()]


def check_timed(engine: DraftingEngine, prompt: Tensor, said: Sequence[Sequence[int]], what: str) -> None:
    """Raise IntegrityError unless what was said behind a prompt, (rows, tokens) int64, is what is said without guesses.

    said: the tokens of each row, equally many; what: is told to people.
    """
    plain = continued(engine.undrafted, prompt, len(said[0]))
    for row, own, other in zip(prompt, said, plain, strict=True):
        check_equal(engine, row, own, other, what)


def side_by_side(
    engine: DraftingEngine, prompt: Tensor, what: str, clock: Clock, *, drafted_first: bool, tokens: int = TOKENS
) -> Compared:
    """Decode behind a prompt, (1, tokens) int64, with and without guesses, in turns of a few tokens; compare and time.

    In the order A B B A, and B A A B where ``drafted_first``: what the machine does meanwhile it does to both. Reading
    the prompt is not timed. Raises IntegrityError where they say unlike texts.
    """
    positions = prompt.shape[1] + tokens
    plain, drafted = engine.undrafted.begin(positions), engine.begin(positions)
    ways: tuple[Generation, Generation] = (plain, drafted)
    chosen = [way.prefill(prompt).shape[1] for way in ways]
    seconds = [0.0, 0.0]
    order: tuple[int, ...] = (1, 0) if drafted_first else (0, 1)
    goal = 1
    while goal < tokens:
        goal = min(goal + PIECE, tokens)
        for way in order:
            begun = clock()
            while chosen[way] < goal:
                chosen[way] += ways[way].decode().shape[1]
            seconds[way] += clock() - begun
        order = order[::-1]
    [own], [other] = drafted.token_ids(), plain.token_ids()
    check_equal(engine, prompt[0], own[:tokens], other[:tokens], what)
    plain_s, drafted_s = (took / (count - 1) for took, count in zip(seconds, chosen, strict=True))
    return Compared(plain_s, drafted_s, drafted.steps)


def check_equal(engine: Engine, prompt: Tensor, drafted: Sequence[int], plain: Sequence[int], what: str) -> None:
    """Raise IntegrityError where guessing has led to another token than plain decoding chooses.

    prompt: (tokens,) int64. It is said how far that token lies below the likeliest one where text is scored, in
    standard deviations of all logits there: near 0, both are as likely, and rounding has chosen.
    """
    place = next((at for at, (own, other) in enumerate(zip(drafted, plain, strict=True)) if own != other), None)
    if place is None:
        return
    read = torch.cat([prompt, prompt.new_tensor(list(plain[:place]))])
    [gap] = teacher_forced.gaps(engine, read, [drafted[place]])
    raise IntegrityError(
        f"guessing changes the text: token {place + 1} of {len(plain)} behind {what} is {drafted[place]}, without"
        f" guesses {plain[place]}, and lies {gap:.2g} deviations below the likeliest; {_advice(engine)}"
    )


def _advice(engine: Engine) -> str:
    dtype = architecture.dtype(engine.subject.model) if shows_model(engine) else None
    if dtype is None or dtype is torch.float32:
        return "expected the same tokens"
    name = str(dtype).removeprefix("torch.")
    return f"expected the same tokens; {name} rounds several at once otherwise than one: dtype=float32 is the control"
