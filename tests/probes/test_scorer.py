"""Two ways to a score: by hidden states that torch sees, and by the logits that an engine gives."""

from __future__ import annotations

import pytest
import torch

from squeeze.probes import scorer, teacher_forced
from squeeze.probes.scoring import Row, log_probabilities, predict
from squeeze.runtimes.eager import Eager
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.kivi import KIVI
from tests.engines import opaque
from tests.tiny import CAUSAL, tiny_subject

ROWS = [Row((3, 1, 4), ((1, 5, 9),), (0,)), Row((2,), ((7, 1, 8, 2),), (1,))]


@pytest.mark.parametrize("name", CAUSAL)
def test_an_engines_logits_score_as_its_models_hidden_states(name: str) -> None:
    subject = tiny_subject(name)
    by_states, by_logits = scorer.of_model(subject.model), scorer.of_engine(opaque(subject))
    expected, found = by_states.predict(ROWS), by_logits.predict(ROWS)
    assert found.hidden.shape == (7, subject.model.config.vocab_size)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.owners, expected.owners)
    (own, greedy), (its, likeliest) = by_logits.log_probabilities(found), by_states.log_probabilities(expected)
    torch.testing.assert_close(own, its, rtol=0, atol=1e-4)
    assert torch.equal(greedy, likeliest)


def test_an_engine_with_a_model_is_scored_by_its_states() -> None:
    """Through the cache that it has, which a plain forward would pass over."""
    subject = KIVI(bits=2, group_size=8).apply(tiny_subject("llama"), CalibrationText.empty())
    engine = Eager("cpu", 1).engine(subject)
    row = [Row((3,), (tuple(range(40)),), (0,))]
    how = scorer.of_engine(engine)
    expected = log_probabilities(subject.model, predict(subject.model, row, engine.states))[0]
    assert torch.equal(how.log_probabilities(how.predict(row))[0], expected)
    plain = scorer.of_model(subject.model)
    assert not torch.allclose(plain.log_probabilities(plain.predict(row))[0], expected)


def test_an_engine_takes_one_continuation_a_row() -> None:
    with pytest.raises(ValueError, match="unpack"):
        scorer.of_engine(opaque(tiny_subject("llama"))).predict([Row((1,), ((2,), (3,)), (0, 1))])


def test_what_an_engine_decoded_is_held_against_its_own_logits() -> None:
    subject, prompt = tiny_subject("llama"), torch.arange(40)
    engine = opaque(subject)
    generation = engine.begin(60)
    generation.prefill(prompt[None])
    for _ in range(7):
        generation.decode()
    [chosen] = generation.token_ids()
    assert max(teacher_forced.gaps(engine, prompt, chosen)) < 1e-3
    turned = opaque(subject, lambda logits: logits.roll(1, -1))  # it decodes with another model than it scores
    assert max(teacher_forced.gaps(turned, prompt, chosen)) > 0.5


def test_what_quantizes_as_it_computes_is_coarse() -> None:
    assert not teacher_forced.is_coarse(opaque(tiny_subject("llama")))
    assert teacher_forced.is_coarse(opaque(tiny_subject("llama"), exact=False))
    assert not teacher_forced.is_coarse(Eager("cpu", 1).engine(tiny_subject("llama")))
    cached = KIVI(bits=2, group_size=8).apply(tiny_subject("llama"), CalibrationText.empty())
    assert teacher_forced.is_coarse(Eager("cpu", 1).engine(cached))
