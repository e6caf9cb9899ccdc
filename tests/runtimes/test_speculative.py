"""Guessed and verified: the text is that of plain greedy decoding, however good or bad the guesses are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from squeeze.artifacts import format as artifact
from squeeze.core.errors import IntegrityError, Unsupported
from squeeze.layers.contract import live_bytes
from squeeze.layers.kv_cache import QuantizedCache
from squeeze.models.subject import Draft, Subject
from squeeze.probes import drafting
from squeeze.runtimes import speculative
from squeeze.runtimes.contract import Step, drafts
from squeeze.runtimes.eager import Eager
from squeeze.runtimes.kv_cache import bytes_per_token
from squeeze.runtimes.speculative import SpeculativeEngine, accepted
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.drafts import EAGER, Scripted, drafted_by, lively, looked_up, prompt, said
from tests.tiny import CAUSAL

TOKENS = 30


def rounded(name: str, dtype: str) -> Subject:
    return RoundToNearest(4, 32, True).apply(lively(name, dtype), CalibrationText.empty())


WAYS: dict[str, Callable[..., Subject]] = {
    "itself": lambda name="llama", dtype="float32": drafted_by(lively(name, dtype), lively(name, dtype)),
    "another": lambda name="llama", dtype="float32": drafted_by(lively(name, dtype), lively(name, dtype, seed=1)),
    "rounded": lambda name="llama", dtype="float32": drafted_by(lively(name, dtype), rounded(name, dtype)),
    "lookup": lambda name="llama", dtype="float32": looked_up(lively(name, dtype)),
}


def plain(name: str = "llama", rows: int = 1, tokens: int = TOKENS) -> list[list[int]]:
    return said(EAGER.engine(lively(name)), prompt(rows), tokens).token_ids()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("way", WAYS)
def test_the_text_is_that_of_plain_decoding(way: str, name: str, rows: int) -> None:
    expected = plain(name, rows)
    assert len({token for row in expected for token in row}) > 1, "a model that repeats one token would show nothing"
    generation = said(EAGER.engine(WAYS[way](name)), prompt(rows), TOKENS)
    assert generation.token_ids() == expected
    assert sum(step.accepted + 1 for step in generation.steps) == TOKENS - 1


def test_a_model_that_is_its_own_draft_is_always_right() -> None:
    steps = said(EAGER.engine(WAYS["itself"]()), prompt(), TOKENS).steps
    assert steps == [Step(4, 4)] * 5 + [Step(3, 3)], "25 tokens by fives, and four that are left"


def test_another_model_is_seldom_right_and_a_rounded_one_sometimes() -> None:
    of = {way: said(EAGER.engine(WAYS[way]()), prompt(), TOKENS).steps for way in ("itself", "rounded", "another")}
    share = {way: sum(s.accepted for s in steps) / sum(s.drafted for s in steps) for way, steps in of.items()}
    assert share["another"] < 0.2 < share["itself"] == 1
    assert share["another"] <= share["rounded"] <= share["itself"]


def test_what_is_accepted_is_what_was_right_before_the_first_wrong_guess() -> None:
    """Steps of a script that is right for 0 to 4 of its guesses: each gives one token more."""
    [text] = plain(tokens=24)
    script = Scripted((tuple(text),), right=(0, 4, 2, 1, 3, 4, 0, 4))
    engine = EAGER.engine(replace(lively(), draft=Draft(script)))
    generation = said(engine, prompt(), 24)
    assert [step.accepted for step in generation.steps] == [0, 4, 2, 1, 3, 4, 0, 1]
    assert generation.token_ids() == [text]
    assert generation.guesses.asked == [4, 4, 4, 4, 4, 4, 2, 1], "none beyond the last token that was asked for"


def test_rows_go_on_together_by_the_fewest_that_are_right() -> None:
    drafted = torch.tensor([[5, 6, 7], [5, 6, 7], [5, 6, 7]])
    choices = torch.tensor([[5, 6, 7, 1], [5, 6, 8, 2], [5, 9, 7, 3]])
    assert [accepted(drafted[:n], choices[:n]) for n in (1, 2, 3)] == [3, 2, 1]
    assert accepted(drafted[:, :0], choices[:, :1]) == 0


def test_a_guess_that_is_accepted_wrongly_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: every guess stands."""
    monkeypatch.setattr(speculative, "accepted", lambda drafted, _: drafted.shape[1])
    engine = EAGER.engine(WAYS["another"]())
    assert drafts(engine)
    with pytest.raises(IntegrityError, match=r"guessing changes the text: token [2-6] of 30 behind a prompt is "):
        drafting.side_by_side(engine, prompt(), "a prompt", iter(range(1000)).__next__, drafted_first=False, tokens=30)


def test_so_is_a_cache_that_keeps_what_was_guessed_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EAGER.engine(WAYS["another"]())
    monkeypatch.setattr(DynamicCache, "crop", lambda *_: None)
    assert said(engine, prompt(), TOKENS).token_ids() != plain()


def test_each_step_is_one_forward_of_the_model_and_the_head_is_applied_to_what_is_verified() -> None:
    subject, read, heads = WAYS["itself"](), [], []
    subject.model.register_forward_pre_hook(
        lambda _module, _arguments, settings: read.append(settings["input_ids"].shape[1]), with_kwargs=True
    )
    subject.model.lm_head.register_forward_hook(lambda _module, inputs, _output: heads.append(inputs[0].shape[1]))
    generation = said(EAGER.engine(subject), prompt(), 12)
    assert read == [12, 5, 5, 1]
    assert heads == [1, 5, 5, 1]
    assert len(generation.steps) == 3


def test_beyond_its_positions_it_guesses_no_more() -> None:
    generation = EAGER.engine(WAYS["itself"]()).begin(12 + 4)
    generation.prefill(prompt())
    assert [generation.decode().shape[1] for _ in range(4)] == [3, 1, 1, 1]
    assert generation.steps[1:] == [Step(0, 0)] * 3


def test_nothing_is_decoded_before_a_prompt_was_read() -> None:
    with pytest.raises(IndexError):
        EAGER.engine(WAYS["lookup"]()).begin(20).decode()


def test_every_step_is_waited_for() -> None:
    generation, waited = EAGER.engine(WAYS["itself"]()).begin(40), []
    generation.synchronize = lambda: waited.append(len(generation.tokens))
    generation.prefill(prompt())
    generation.decode()
    assert waited == [0, 1]  # before its tokens count as chosen


def test_it_is_scored_as_without_a_draft_and_holds_both_models() -> None:
    engine = EAGER.engine(WAYS["rounded"]())
    assert isinstance(engine, SpeculativeEngine)
    alone = EAGER.engine(lively())
    assert not drafts(alone)
    assert torch.equal(engine.logits(prompt(2)), alone.logits(prompt(2)))
    assert torch.equal(engine.log_probabilities(prompt(2)), alone.log_probabilities(prompt(2)))
    assert engine.undrafted.subject.draft is None
    assert engine.undrafted.subject.model is engine.subject.model
    assert engine.subject.draft is not None
    assert engine.subject.draft.subject is not None
    assert engine.bytes_held == alone.bytes_held + live_bytes(engine.subject.draft.subject.model) > alone.bytes_held


def test_both_caches_count() -> None:
    generation = said(EAGER.engine(WAYS["itself"]()), prompt(), 12)
    own = bytes_per_token(generation.cache)
    assert generation.bytes_per_token == own + bytes_per_token(generation.guesses.cache) == pytest.approx(2 * own)
    assert said(EAGER.engine(WAYS["lookup"]()), prompt(), 12).bytes_per_token == own


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_saved_and_loaded_with_its_draft(way: str, dtype: str, tmp_path: Path) -> None:
    subject = WAYS[way](dtype=dtype)
    artifact.save(subject, tmp_path)
    loaded = EAGER.load(tmp_path)
    assert isinstance(loaded, SpeculativeEngine)
    assert loaded.draft.how == subject.draft.how  # type: ignore[union-attr]
    has_model = loaded.draft.how.has_model
    assert (tmp_path / "draft" / "model.safetensors").exists() is has_model
    assert not list(tmp_path.glob("draft/tokenizer*")), "the model's own is its draft's"
    if dtype == "float32":
        found, expected = (said(engine, prompt(), TOKENS) for engine in (loaded, EAGER.engine(subject)))
        assert found.token_ids() == expected.token_ids()
        assert found.steps == expected.steps
    again = artifact.load(tmp_path, prepare=False)
    artifact.save(again, tmp_path / "again")
    for name in ("model.safetensors", "artifact.json") if has_model else ():
        assert (tmp_path / "again" / "draft" / name).read_bytes() == (tmp_path / "draft" / name).read_bytes()


def test_a_damaged_draft_is_refused(tmp_path: Path) -> None:
    artifact.save(WAYS["itself"](), tmp_path)
    (tmp_path / "draft" / "artifact.json").unlink()
    with pytest.raises(IntegrityError, match=r"draft: no readable artifact\.json"):
        artifact.load(tmp_path)


@pytest.mark.parametrize(
    ("runtime", "changes", "said_of"),
    [
        (Eager("cpu", 1, cache="static"), {}, "a static cache"),
        (EAGER, {"cache": QuantizedCache(8, 8)}, "a QuantizedCache"),
    ],
)
def test_a_cache_that_forgets_nothing_is_refused(runtime: Eager, changes: dict[str, Any], said_of: str) -> None:
    with pytest.raises(Unsupported, match=f"guessed in vain cannot be taken out of {said_of}"):
        runtime.engine(replace(WAYS["lookup"](), **changes))


def test_both_models_have_positions_for_it() -> None:
    subject = WAYS["itself"]()
    assert subject.draft is not None
    assert subject.draft.subject is not None
    subject.draft.subject.model.config.max_position_embeddings = 100
    with pytest.raises(Unsupported, match="the model has 100 positions"):
        EAGER.engine(subject).begin(101)


def test_attention_is_computed_alike_in_both() -> None:
    subject = WAYS["itself"]()
    engine = Eager("cpu", 1, attention="eager").engine(subject)
    assert subject.draft is not None
    assert subject.draft.subject is not None
    assert {each.model.config._attn_implementation for each in (subject, subject.draft.subject)} == {"eager"}
    assert said(engine, prompt(), TOKENS).token_ids() == plain()
