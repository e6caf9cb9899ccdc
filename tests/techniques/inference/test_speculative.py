"""Drafting: what a step gives a subject, what it refuses, and how it is asked for by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from squeeze.artifacts import format as artifact
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.drafting import ByLookup, ByModel
from squeeze.models.subject import Subject
from squeeze.request.expand import cells
from squeeze.request.recipe import recipe
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.kivi import KIVI
from squeeze.techniques.inference.prompt_lookup import PromptLookup
from squeeze.techniques.inference.speculative import Speculative
from squeeze.techniques.inference.streaming import StreamingLLM
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_subject

NO_TEXT = CalibrationText.empty()


def guessed_by(draft: Subject) -> CalibrationText:
    return replace(NO_TEXT, load_draft=lambda: draft)


def test_the_recipes_draft_guesses() -> None:
    draft = RoundToNearest(4, 32, True).apply(tiny_subject("llama"), NO_TEXT)
    subject = Speculative(3).apply(tiny_subject("llama"), guessed_by(draft))
    assert subject.draft is not None
    assert (subject.draft.how, subject.draft.subject) == (ByModel(3), draft)
    assert subject.claims == {"drafted_tokens": 3}, "the draft's claims are not the model's"


def test_the_text_guesses() -> None:
    subject = PromptLookup(3).apply(tiny_subject("llama"), NO_TEXT)
    assert subject.draft is not None
    assert (subject.draft.how, subject.draft.subject) == (ByLookup(3, 2), None)
    assert subject.claims == {"drafted_tokens": 3}


def test_the_draft_travels_with_the_subject_through_later_steps(tmp_path: Path) -> None:
    subject = Speculative(3).apply(tiny_subject("llama"), guessed_by(tiny_subject("llama", seed=1)))
    later = RoundToNearest(4, 32, True).apply(subject, NO_TEXT)
    assert later.draft == subject.draft
    artifact.save(later, tmp_path)
    assert artifact.describe(tmp_path)["draft"] == {"_target_": "drafting.ByModel", "drafted_tokens": 3}
    assert "bits" not in artifact.describe(tmp_path / "draft")["claims"]


def test_without_a_draft_it_says_what_the_recipe_lacks() -> None:
    with pytest.raises(
        SqueezeError, match="no draft to load, expected steps that make one; give the recipe a list draft"
    ):
        Speculative(3).apply(tiny_subject("llama"), NO_TEXT)


@pytest.mark.parametrize("technique", [Speculative(4), PromptLookup(4)])
def test_models_and_subjects_that_it_does_not_suit_are_refused(technique: Speculative | PromptLookup) -> None:
    text = guessed_by(tiny_subject("llama"))
    with pytest.raises(Unsupported, match="no language-modelling head"):
        technique.apply(tiny_subject("bert"), text)
    with pytest.raises(Unsupported, match="there is a QuantizedCache already; expected one step with a cache"):
        technique.apply(KIVI(8, 8).apply(tiny_subject("llama"), NO_TEXT), text)
    with pytest.raises(Unsupported, match="there is a draft already, and only the plain cache forgets"):
        technique.apply(PromptLookup(2).apply(tiny_subject("llama"), NO_TEXT), text)
    with pytest.raises(Unsupported, match="cannot draft 0 tokens at a time; expected at least 1"):
        replace(technique, drafted_tokens=0).apply(tiny_subject("llama"), text)
    forgetful = tiny_subject("llama")
    forgetful.model.config.sliding_window = 8  # type: ignore[union-attr]
    with pytest.raises(Unsupported, match="forgets tokens by itself"):
        technique.apply(forgetful, text)


def test_a_draft_is_a_model_of_the_same_tokens_with_a_plain_cache() -> None:
    own = tiny_subject("llama")
    for draft, why in (
        (tiny_subject("bert"), "no language-modelling head"),
        (StreamingLLM(256).apply(tiny_subject("llama"), NO_TEXT), "its draft: there is a WindowCache already"),
        (PromptLookup(2).apply(tiny_subject("llama"), NO_TEXT), "its draft: there is a draft already"),
    ):
        with pytest.raises(Unsupported, match=why):
            Speculative(4).apply(own, guessed_by(draft))
    other = tiny_subject("llama")
    other.model.config.vocab_size = 300  # type: ignore[union-attr]
    with pytest.raises(Unsupported, match="the draft knows 300 tokens, the model 260; expected the same ones"):
        Speculative(4).apply(own, guessed_by(other))


def test_a_lookup_looks_for_something() -> None:
    with pytest.raises(Unsupported, match="cannot look for 0 tokens"):
        PromptLookup(4, longest_match=0).apply(tiny_subject("llama"), NO_TEXT)


def test_a_cache_that_rounds_or_forgets_comes_to_no_model_that_drafts() -> None:
    drafting = PromptLookup(2).apply(tiny_subject("llama"), NO_TEXT)
    for technique in (KIVI(8, 8), StreamingLLM(256)):
        with pytest.raises(Unsupported, match="there is a draft already"):
            technique.apply(drafting, NO_TEXT)


def test_asked_for_by_name_the_number_of_drafted_tokens_is_an_axis() -> None:
    asked = ["model=tiny_llama", "technique=speculative_layer_drop,prompt_lookup", "drafted_tokens=2,8"]
    assert [cell.label for cell in cells(asked)] == [
        "tiny_llama-speculative_layer_drop-layers0.5-d2",
        "tiny_llama-speculative_layer_drop-layers0.5-d8",
        "tiny_llama-prompt_lookup-d2",
        "tiny_llama-prompt_lookup-d8",
    ]
    with pytest.raises(SqueezeError, match="drafted_tokens: 0 is not allowed; expected an integer from 1 to 64"):
        cells(["model=tiny_llama", "technique=prompt_lookup", "drafted_tokens=0"])


@pytest.mark.parametrize("technique", ["speculative_layer_drop", "speculative_rtn", "speculative_student"])
def test_a_draft_is_the_cell_of_its_steps_and_no_row_has_its_settings(technique: str) -> None:
    asked = ["model=tiny_llama", f"technique={technique}", "bits=3", "layers_kept=0.75"]
    (cell,) = cells(asked)
    assert cell.draft is not None
    assert cell.draft.draft is None
    assert cell.drafts
    assert not cell.draft.drafts
    assert (cell.axis("bits"), cell.training) == (None, None), "of the row: the model is not rounded, nor trained"
    assert (cell.draft.model, cell.draft.calibration) == (cell.model, cell.calibration)
    assert bool(cell.calibration) is (technique != "speculative_rtn")
    assert recipe(cell).exact
    assert cell.key != cells([*asked, "drafted_tokens=5"])[0].key
    assert cell.key != cells([*asked[:2], "bits=2", "layers_kept=0.9"])[0].key


def test_a_draft_of_unknown_steps_is_refused() -> None:
    for override, why in (
        ("technique.draft.0.bits=5", "technique.draft.0.bits: 5 is not allowed; rtn.RoundToNearest has code for"),
        ("technique.draft=3", "technique.draft: 3 is not allowed; expected a list of steps"),
    ):
        with pytest.raises(SqueezeError, match=why):
            cells(["model=tiny_llama", "technique=speculative_rtn", override])
