"""The gate of rows that draft: one token that plain decoding would not say is too many, and what it is is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from squeeze.core.errors import IntegrityError
from squeeze.models.subject import Draft
from squeeze.probes import drafting
from squeeze.probes.drafting import check_equal, check_timed, continued, side_by_side
from squeeze.runtimes import speculative
from tests.drafts import EAGER, Scripted, drafted_by, lively, looked_up, prompt, said


class Clock:
    """Seconds that pass only when a model works: each forward of a drafted way takes 3, of the plain one 2."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def slowed(engine: Any, clock: Clock) -> Any:
    """The engine, whose calls of ``decode`` take time by that clock."""

    class Slow:
        def __init__(self, begin: Any, seconds: float) -> None:
            self.inner, self.seconds = begin, seconds

        def begin(self, positions: int) -> Any:
            generation = self.inner(positions)
            decode = generation.decode

            def taking() -> torch.Tensor:
                clock.now += self.seconds
                return decode()

            generation.decode = taking
            return generation

    found = Slow(engine.begin, 3.0)
    found.undrafted, found.subject, found.states = Slow(engine.undrafted.begin, 2.0), engine.subject, engine.states
    return found


@pytest.mark.parametrize("drafted_first", [False, True])
def test_both_ways_say_the_same_and_each_is_timed_by_tokens(drafted_first: bool) -> None:
    """A draft that is always right: 11 tokens behind the first are 5 and 5 and 1, three calls of 3 seconds."""
    clock = Clock()
    engine = slowed(EAGER.engine(drafted_by(lively(), lively())), clock)
    found = side_by_side(engine, prompt(), "a prompt", clock, drafted_first=drafted_first, tokens=12)
    assert (found.plain_s, found.drafted_s) == (pytest.approx(2.0), pytest.approx(9.0 / 11))
    assert found.figures() == {
        "plain_s": found.plain_s,
        "drafted_s": found.drafted_s,
        "steps": 3,
        "drafted": 8,
        "accepted": 8,
    }


def test_the_ways_take_turns_of_a_few_tokens_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "PIECE", 4)
    order: list[str] = []

    class Way:
        steps: tuple[()] = ()

        def __init__(self, name: str) -> None:
            self.name, self.chosen = name, 1

        def prefill(self, text: torch.Tensor) -> torch.Tensor:
            return text[:, :1]

        def decode(self) -> torch.Tensor:
            order.append(self.name)
            self.chosen += 4
            return torch.zeros((1, 4), dtype=torch.int64)

        def token_ids(self) -> list[list[int]]:
            return [[0] * self.chosen]

    class Engine:
        def __init__(self, name: str) -> None:
            self.name = name

        def begin(self, _: int) -> Way:
            return Way(self.name)

    engine: Any = Engine("d")
    engine.undrafted = Engine("p")
    side_by_side(engine, prompt(), "a prompt", Clock(), drafted_first=False, tokens=17)
    assert "".join(order) == "pddppddp"
    order.clear()
    side_by_side(engine, prompt(), "a prompt", Clock(), drafted_first=True, tokens=17)
    assert "".join(order) == "dppddppd"


def test_what_was_timed_is_decoded_once_more() -> None:
    engine = EAGER.engine(looked_up(lively()))
    generated = said(engine, prompt(2), 9).token_ids()
    check_timed(engine, prompt(2), generated, "the timed prompt")
    generated[1][5] = (generated[1][5] + 1) % 256
    with pytest.raises(IntegrityError, match="token 6 of 9 behind the timed prompt is "):
        check_timed(engine, prompt(2), generated, "the timed prompt")


def test_how_far_the_other_token_lies_below_the_likeliest_is_said() -> None:
    engine = EAGER.engine(looked_up(lively()))
    [plain] = continued(engine.undrafted, prompt(), 6)
    logits = engine.logits(torch.cat([prompt(), torch.tensor([plain[:3]])], dim=1))[0, -1]
    second = int(logits.topk(2).indices[1])
    gap = float((logits.max() - logits[second]) / logits.std())
    drafted = [*plain[:3], second, *plain[4:]]
    with pytest.raises(IntegrityError) as caught:
        check_equal(engine, prompt()[0], drafted, plain, "a prompt")
    assert str(caught.value) == (
        f"guessing changes the text: token 4 of 6 behind a prompt is {second}, without guesses {plain[3]}, and lies"
        f" {gap:.2g} deviations below the likeliest; expected the same tokens"
    )


def test_of_sixteen_bits_the_control_is_named() -> None:
    engine = EAGER.engine(looked_up(lively(dtype="bfloat16")))
    with pytest.raises(IntegrityError, match=r"bfloat16 rounds several at once .*: dtype=float32 is the control"):
        check_equal(engine, prompt()[0], [1, 2], [1, 3], "a prompt")
    check_equal(engine, prompt()[0], [1, 2], [1, 2], "a prompt")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One wrong guess in twenty is accepted."""
    honest, calls = speculative.accepted, []

    def accepted(drafted: torch.Tensor, choices: torch.Tensor) -> int:
        calls.append(1)
        return drafted.shape[1] if len(calls) == 4 else honest(drafted, choices)

    monkeypatch.setattr(speculative, "accepted", accepted)
    yield
    assert len(calls) >= 4


@pytest.mark.usefixtures("planted")
def test_one_wrong_token_is_enough() -> None:
    [text] = continued(EAGER.engine(lively()), prompt(), 48)
    script = Scripted((tuple(text),), right=(4, 2, 4, 3, *[4] * 40))
    engine = EAGER.engine(replace(lively(), draft=Draft(script)))
    with pytest.raises(IntegrityError, match=r"guessing changes the text: token (18|19|20) of 48"):
        side_by_side(engine, prompt(), "a prompt", Clock(), drafted_first=False)
