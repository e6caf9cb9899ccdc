"""One table or two: the same predictions or those of the table, its bytes, and a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes import size
from squeeze.probes.size import stored_tensors
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.sharing.tie import Tie
from tests.tiny import CAUSAL, tiny_subject

NO_DATA = CalibrationText.empty()
TOKEN_IDS = torch.arange(24).reshape(2, 12)
TABLE = 260 * 64


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(TOKEN_IDS).logits.float()


def tables(subject: Subject) -> tuple[Any, Any]:
    model: Any = subject.model
    return model.get_input_embeddings(), architecture.head(model)


def subject_of(name: str, *, tied: bool) -> Subject:
    subject = tiny_subject(name)
    embedding, head = tables(subject)
    if not tied:
        head.weight = torch.nn.Parameter(torch.randn(260, 64, generator=torch.Generator().manual_seed(1)) / 8)
    subject.model.config.tie_word_embeddings = tied
    subject.model.tie_weights()
    assert (head.weight is embedding.weight) == tied
    return subject


@pytest.mark.parametrize("name", CAUSAL)
def test_untied_it_predicts_the_same_and_stores_another_table(name: str, tmp_path: Path) -> None:
    before = subject_of(name, tied=True)
    expected, parameters = logits(before.model), count_parameters(before.model)
    artifact.save(before, tmp_path / "before")
    after = Tie(tied=False).apply(before, NO_DATA)
    artifact.save(after, tmp_path / "after")
    embedding, head = tables(after)
    assert head.weight.data_ptr() != embedding.weight.data_ptr()
    assert torch.equal(logits(after.model), expected)
    assert count_parameters(after.model) == parameters + TABLE
    assert after.claims == {"parameters": parameters}
    stored = [sum(tensor.bytes for tensor in stored_tensors(tmp_path / which)) for which in ("before", "after")]
    assert stored[1] - stored[0] == 4 * TABLE
    assert size.mismatches(tmp_path / "after", tmp_path / "before", count_parameters(after.model)) == []
    for loaded in (artifact.load(tmp_path / "after").model, plain(tmp_path / "after")):
        assert torch.equal(logits(loaded), expected)
        assert loaded.get_output_embeddings().weight is not loaded.get_input_embeddings().weight


@pytest.mark.parametrize("table", ["embedding", "mean"])
@pytest.mark.parametrize("name", CAUSAL)
def test_tied_both_are_the_table_and_it_is_stored_once(name: str, table: Any, tmp_path: Path) -> None:
    before = subject_of(name, tied=False)
    embedding, head = tables(before)
    expected = embedding.weight.clone() if table == "embedding" else (embedding.weight + head.weight) / 2
    parameters = count_parameters(before.model)
    artifact.save(before, tmp_path / "before")
    after = Tie(tied=True, table=table).apply(before, NO_DATA)
    artifact.save(after, tmp_path / "after")
    assert count_parameters(after.model) == parameters - TABLE
    stored = [sum(tensor.bytes for tensor in stored_tensors(tmp_path / which)) for which in ("before", "after")]
    assert stored[0] - stored[1] == 4 * TABLE
    for model in (after.model, artifact.load(tmp_path / "after").model, plain(tmp_path / "after")):
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        assert head.weight.data_ptr() == embedding.weight.data_ptr()
        assert torch.allclose(head.weight, expected, atol=1e-7)
        assert torch.equal(logits(model), logits(after.model))


def plain(folder: Path) -> Any:
    """What transformers loads by itself."""
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("table", ["embedding", "mean"])
def test_what_is_so_already_stays(tied: bool, table: Any) -> None:
    subject = subject_of("llama", tied=tied)
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    after = Tie(tied, table).apply(subject, NO_DATA)
    assert after is subject
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.model.state_dict().items())


def test_of_two_tables_both_are_rounded_by_what_comes_after() -> None:
    untied = Tie(tied=False).apply(subject_of("llama", tied=True), NO_DATA)
    rounded = RoundToNearest(4, 32, symmetric=True, embed_bits=8).apply(untied, NO_DATA)
    embedding, head = tables(rounded)
    assert embedding is not head
    assert torch.equal(embedding.dequantize(), head.dequantize())
    with pytest.raises(Unsupported, match="a QuantizedLinear is no plain table"):
        Tie(tied=True).apply(rounded, NO_DATA)


def narrow_head() -> Subject:
    subject = subject_of("llama", tied=False)
    subject.model.lm_head = torch.nn.Linear(32, 260, bias=False)
    return subject


@pytest.mark.parametrize(
    ("make", "asked", "said"),
    [
        (lambda: tiny_subject("bert"), Tie(True), "has no language-modelling head"),
        (narrow_head, Tie(True), r"the head is \(260, 32\), the embedding \(260, 64\); expected one shape"),
        (lambda: tiny_subject("llama"), Tie(True, "head"), "no table 'head'; expected 'embedding' or"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(make: Any, asked: Tie, said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        asked.apply(make(), NO_DATA)
