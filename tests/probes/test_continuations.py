"""Greedy continuations: what a user would read, together in a batch or each alone."""

from __future__ import annotations

import pytest
import torch

from squeeze.probes.continuations import PROMPT, continued, few, prompts
from squeeze.runtimes.eager import Eager
from squeeze.sources import corpora
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.kivi import KIVI
from tests.tiny import tiny_subject


def texts(count: int = 5) -> torch.Tensor:
    return torch.randint(200, (count, 24), generator=torch.Generator().manual_seed(0))


def test_each_token_is_the_likeliest_after_all_before() -> None:
    subject = tiny_subject("llama")
    found = continued(Eager("cpu", 1).engine(subject), texts(2), tokens=6, together=2)
    assert found.shape == (2, 6)
    for prompt, chosen in zip(texts(2), found, strict=True):
        whole = torch.cat([prompt, torch.from_numpy(chosen).long()])
        likeliest = subject.model(input_ids=whole[None]).logits[0].argmax(-1)
        assert likeliest[len(prompt) - 1 : -1].tolist() == chosen.tolist()


@pytest.mark.parametrize("together", [1, 2, 16])
def test_prompts_do_not_see_one_another(together: int) -> None:
    engine = Eager("cpu", 1).engine(tiny_subject("llama"))
    alone = continued(engine, texts(), tokens=8, together=1)
    assert continued(engine, texts(), tokens=8, together=together).tolist() == alone.tolist()


def test_calls_that_give_several_tokens_are_counted_by_tokens() -> None:
    """The second prompt's calls give other numbers of tokens than the first's: both are as long as was asked."""

    class Several:
        def __init__(self, *counts: int) -> None:
            self.counts, self.made = list(counts), 1

        def prefill(self, prompt: torch.Tensor) -> torch.Tensor:
            return prompt[:, :1]

        def decode(self) -> torch.Tensor:
            self.made += self.counts[0]
            return torch.zeros((1, self.counts.pop(0)), dtype=torch.int64)

        def token_ids(self) -> list[list[int]]:
            return [list(range(self.made))]

    class Engine:
        generations = iter([Several(2, 1, 3), Several(5)])

        def begin(self, positions: int) -> Several:
            assert positions == 24 + 6
            return next(self.generations)

    found = continued(Engine(), texts(2), tokens=6, together=1)  # type: ignore[arg-type]
    assert found.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_a_cache_of_its_own_is_generated_through() -> None:
    subject = tiny_subject("llama")
    exact = continued(Eager("cpu", 1).engine(subject), texts(), tokens=16, together=1)
    cached = KIVI(bits=2, group_size=8).apply(subject, CalibrationText.empty())
    assert (continued(Eager("cpu", 1).engine(cached), texts(), tokens=16, together=1) != exact).any()


def test_prompts_are_consecutive_pieces_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "text", lambda _: "".join(chr(97 + number % 26) for number in range(5000)))
    engine = Eager("cpu", 1).engine(tiny_subject("llama"))
    found = prompts("wikipedia_eval", engine, 6)
    assert found.shape == (6, PROMPT)
    assert torch.equal(found.flatten(), corpora.tokens("wikipedia_eval", engine.tokenizer, 6 * PROMPT))


def test_a_quarter_of_the_prompts_is_continued_alone_and_at_least_one() -> None:
    assert torch.equal(few(texts(8)), texts(8)[:2])
    assert len(few(texts(3))) == 1
