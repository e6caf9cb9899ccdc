"""What is handed to a tracer computes what the artifact computes, and its matrices are known by their values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DynamicCache
from transformers.exporters import DynamoConfig, DynamoExporter

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports import traced
from squeeze.artifacts.exports.traced import Traceable, fingerprint, is_causal, sample, traceable
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import is_compressed, matrices
from squeeze.layers.lora import LoraLinear, features
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.kivi import KIVI
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.quantization.kmeans import KMeans
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.torch_dynamic import TorchDynamic
from tests.tiny import CAUSAL, tiny_subject

NO_DATA = CalibrationText.empty()
TOKEN_IDS = torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(0))
BLOCKS = 7 * 2  # linear layers of the tiny Llama's blocks


def adapted(subject: Subject) -> Subject:
    """Each matrix with a change of rank 4 beside it."""
    generator = torch.Generator().manual_seed(0)
    for name, layer in list(matrices(subject.model)):
        rows, columns = features(layer)
        pair = torch.randn(4, columns, generator=generator) / 8, torch.randn(rows, 4, generator=generator) / 8
        lengths = torch.rand(rows, generator=generator)
        architecture.replace(
            subject.model, name, LoraLinear.of(layer, *pair, lengths, alpha=8, dtype=architecture.dtype(subject.model))
        )
    return subject


def rounded(subject: Subject) -> Subject:
    return RoundToNearest(4, 32, False).apply(subject, NO_DATA)


MADE: dict[str, Callable[[Subject], Subject]] = {
    "none": lambda subject: subject,
    "rtn": rounded,
    "tables": lambda subject: RoundToNearest(4, 32, True, embed_bits=8).apply(subject, NO_DATA),
    "kmeans": lambda subject: KMeans(4, None).apply(subject, NO_DATA),
    "zeros": lambda subject: Magnitude(0.5).apply(subject, NO_DATA),
    "zeros and codes": lambda subject: RoundToNearest(4, 32, True, zeros_left_out=True).apply(
        Magnitude(0.7).apply(subject, NO_DATA), NO_DATA
    ),
    "adapters": adapted,
    "adapters on codes": lambda subject: adapted(rounded(subject)),
}


def made(subject: Subject, folder: Path) -> Traceable:
    artifact.save(subject, folder)
    return traceable(folder)


@torch.inference_mode()
@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("how", MADE)
def test_it_computes_what_the_artifact_computes(how: str, name: str, tmp_path: Path) -> None:
    found = made(MADE[how](tiny_subject(name)), tmp_path).subject.model
    expected = artifact.load(tmp_path).model(TOKEN_IDS).logits
    torch.testing.assert_close(found(TOKEN_IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert not any(is_compressed(module) for module in found.modules() if not isinstance(module, LoraLinear))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_layers_are_known_by_the_values_that_a_graph_holds(dtype: str, tmp_path: Path) -> None:
    found = made(rounded(tiny_subject("llama", dtype)), tmp_path)
    known = found.matrices()
    stored = artifact.load(tmp_path, prepare=False).model
    assert len(found.packed) == BLOCKS
    for name, layer in found.packed.items():
        values = stored.get_submodule(name).dequantize().float().numpy()
        assert (known[fingerprint(values)].name, known[fingerprint(values)].transposed) == (name, False)
        assert (known[fingerprint(values.T)].name, known[fingerprint(values.T)].transposed) == (name, True)
        assert known[fingerprint(values)].layer is layer
        values[0, 0] += 1e-3
        assert fingerprint(values) not in known


def test_fingerprints_tell_shapes_apart() -> None:
    assert fingerprint(np.zeros((2, 8))) != fingerprint(np.zeros((4, 4)))


def test_a_table_that_is_the_head_too_stays_one_tensor(tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    subject.model.lm_head.weight = subject.model.model.embed_tokens.weight
    subject.model.config.tie_word_embeddings = True
    found = made(MADE["tables"](subject), tmp_path)
    model = found.subject.model
    assert isinstance(model.model.embed_tokens, nn.Embedding)
    assert isinstance(model.lm_head, nn.Linear)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(found.packed) == BLOCKS + 1


@pytest.mark.parametrize(
    ("made_of", "message"),
    [
        (lambda subject: KIVI(4, 8).apply(subject, NO_DATA), "a cache of its own.*use runtime=eager"),
        (
            lambda subject: TorchDynamic(True, 7).apply(subject, NO_DATA),
            "DynamicInt8Linear rounds what it multiplies with",
        ),
    ],
)
def test_what_computes_otherwise_is_refused(
    made_of: Callable[[Subject], Subject], message: str, tmp_path: Path
) -> None:
    with pytest.raises(Unsupported, match=message):
        made(made_of(tiny_subject("llama")), tmp_path)


def test_what_reads_pictures_is_refused_for_the_graph_would_read_text_alone(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"it reads pictures, .*use runtime=eager"):
        made(tiny_subject("llava"), tmp_path)


def test_codes_are_not_rounded_again(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"q_proj holds codes, which NNCF's quantizer would round again"):
        made(rounded(tiny_subject("llama")), tmp_path / "codes").check_floats("NNCF")
    made(tiny_subject("llama"), tmp_path / "floats").check_floats("NNCF")


def test_a_graph_that_lost_codes_is_refused(tmp_path: Path) -> None:
    packed = made(rounded(tiny_subject("llama")), tmp_path).packed
    traced.check_found(packed, set(packed))
    with pytest.raises(SqueezeError, match=r"values are not in the traced graph, nor are those of 1 more of 14"):
        traced.check_found(packed, set(list(packed)[2:]))


def test_an_absent_library_is_named_with_the_command() -> None:
    traced.check_installed("some", "torch")
    with pytest.raises(Unsupported, match=r"nowhere_1 and nowhere_2 are not installed here; `nox -s runtimes -- some`"):
        traced.check_installed("some", "nowhere_1", "torch", "nowhere_2")


@torch.inference_mode()
@pytest.mark.parametrize("name", CAUSAL)
def test_a_sample_reads_behind_its_cache(name: str) -> None:
    """Its logits are those of the whole text at the places that it asks for."""
    model = tiny_subject(name).model
    inputs, _ = sample(model)
    before = torch.arange(traced.ROWS * traced.READ).reshape(traced.ROWS, traced.READ)
    whole = model(torch.cat([before, inputs["input_ids"]], dim=1)).logits[:, traced.READ :]
    found = model(**inputs).logits
    assert found.shape[:2] == (traced.ROWS, traced.KEPT)
    torch.testing.assert_close(found, whole[:, inputs["logits_to_keep"]], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # torch's own
def test_a_trace_takes_other_numbers_of_rows_and_tokens() -> None:
    """Traced as both exporters do, up to where each goes its own way."""
    model = tiny_subject("llama").model
    inputs, lengths = sample(model)
    config = DynamoConfig(dynamic=True, dynamic_shapes=lengths)
    program = DynamoExporter().export(model, inputs, config).program.module()
    cache, expected = DynamicCache(config=model.config), DynamicCache(config=model.config)
    text = torch.randint(256, (3, 13), generator=torch.Generator().manual_seed(1))
    for each in (cache, expected):
        model(input_ids=text[:, :4], past_key_values=each, use_cache=True)
    places = torch.tensor([8, 2])
    found = program(input_ids=text[:, 4:], past_key_values=cache, logits_to_keep=places)
    wanted = model(input_ids=text[:, 4:], past_key_values=expected, logits_to_keep=places)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    assert found.past_key_values.layers[1].keys.shape[-2] == 13


def test_encoders_and_classifiers_are_no_causal_models() -> None:
    kinds = {name: is_causal(tiny_subject(name).model) for name in (*CAUSAL, "bert", "bert_classifier")}
    assert kinds == {**dict.fromkeys(CAUSAL, True), "bert": False, "bert_classifier": False}
    assert set(sample(tiny_subject("bert").model)[0]) == {"input_ids"}
