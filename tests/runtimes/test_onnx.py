"""ONNX Runtime beside the eager forward: the same tokens and logits, of floats and of our codes; caches apart.

What needs the libraries is skipped where they are not installed; ``nox -s runtimes`` makes its environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from squeeze.artifacts import format as artifact
from squeeze.core.cache import using
from squeeze.core.errors import Unsupported
from squeeze.models.subject import Subject
from squeeze.runtimes.eager import Eager
from squeeze.runtimes.onnx import ONNXEngine, ONNXRuntime
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import CAUSAL, tiny_subject

NO_DATA = CalibrationText.empty()
TOKEN_IDS = torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(0))
NEEDED = "nox -s runtimes -- onnx"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("cuda:0", 1, "stored", "float"), "asked for cuda:0; use device=cpu"),
        (("cpu", 1, "int2", "float"), "no weights 'int2'; expected one of stored, int8, int4"),
        (("cpu", 1, "stored", "int4"), "no activations 'int4'; expected one of float, int8"),
        (("cpu", 1, "int8", "float"), "rounds the inputs of int8 weights, too; use activations=int8"),
    ],
)
def test_fields_that_are_none_are_refused(fields: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=message):
        ONNXRuntime(*fields).load(tmp_path)


def loaded(subject: Subject, folder: Path, **fields: str) -> ONNXEngine:
    pytest.importorskip("onnxruntime", reason=NEEDED)
    artifact.save(subject, folder / "artifact")
    given = {"weights": "stored", "activations": "float", **fields}
    with using(folder / "cache"):
        return ONNXRuntime("cpu", 1, **given).load(folder / "artifact")  # type: ignore[arg-type]


MADE: dict[str, Any] = {
    "none": lambda subject: subject,
    "rtn 8 a row": lambda subject: RoundToNearest(8, None, True).apply(subject, NO_DATA),
    "rtn 4": lambda subject: RoundToNearest(4, 32, True).apply(subject, NO_DATA),
    "rtn 3, zero points": lambda subject: RoundToNearest(3, 32, False).apply(subject, NO_DATA),
    "tables": lambda subject: RoundToNearest(4, 32, False, embed_bits=8).apply(subject, NO_DATA),
}


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("how", MADE)
def test_its_logits_are_the_eager_models(how: str, name: str, tmp_path: Path) -> None:
    subject = MADE[how](tiny_subject(name))
    engine = loaded(subject, tmp_path)
    expected = Eager("cpu", 1).load(tmp_path / "artifact").logits(TOKEN_IDS)
    found = engine.logits(TOKEN_IDS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert engine.exact
    chosen = expected[:, :-1].log_softmax(-1).gather(-1, TOKEN_IDS[:, 1:, None])[..., 0]
    torch.testing.assert_close(engine.log_probabilities(TOKEN_IDS), chosen, rtol=1e-3, atol=1e-4)


def test_it_generates_what_transformers_does_each_generation_on_its_own(tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    engine = loaded(subject, tmp_path)
    generations = [engine.begin(30), engine.begin(30)]
    prompts = [TOKEN_IDS[:, :12], TOKEN_IDS[:1, 5:]]  # of other lengths and numbers of rows
    for generation, prompt in zip(generations, prompts, strict=True):
        generation.prefill(prompt)
    for _ in range(5):  # in turns
        for generation in generations:
            generation.decode()
    greedy = GenerationConfig(do_sample=False, max_new_tokens=6, pad_token_id=0)
    for generation, prompt in zip(generations, prompts, strict=True):
        expected = subject.model.generate(prompt, generation_config=greedy)[:, prompt.shape[1] :]
        assert generation.token_ids() == expected.tolist()
        assert generation.bytes_per_token == 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, channels, float32


def test_its_bytes_are_those_of_the_weights(tmp_path: Path) -> None:
    floats = loaded(tiny_subject("llama"), tmp_path / "floats").bytes_held
    codes = loaded(RoundToNearest(4, 32, True).apply(tiny_subject("llama"), NO_DATA), tmp_path / "codes").bytes_held
    assert codes < 0.7 * floats


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_what_its_tools_round_is_near_and_not_exact(weights: str, tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    engine = loaded(subject, tmp_path, weights=weights, activations="int8")
    assert not engine.exact
    expected = Eager("cpu", 1).load(tmp_path / "artifact").logits(TOKEN_IDS)
    error = float((engine.logits(TOKEN_IDS) - expected).norm() / expected.norm())
    assert 1e-4 < error < {"int8": 0.05, "int4": 0.4}[weights]


@pytest.mark.parametrize("name", ["bert", "bert_classifier"])
def test_it_runs_encoders_and_classifiers(name: str, tmp_path: Path) -> None:
    engine = loaded(tiny_subject(name), tmp_path)
    expected = Eager("cpu", 1).load(tmp_path / "artifact").encode(TOKEN_IDS)
    torch.testing.assert_close(engine.encode(TOKEN_IDS), expected, rtol=1e-3, atol=1e-4)
    assert engine.encode(TOKEN_IDS[:1, :7]).shape == ((1, 7, 64) if name == "bert" else (1, 2))
    with pytest.raises(Unsupported, match=r"2048 positions.*need 3000"):
        engine.encode(torch.zeros(1, 3000, dtype=torch.int64))


def test_a_text_beyond_the_model_is_refused(tmp_path: Path) -> None:
    engine = loaded(tiny_subject("llama"), tmp_path)
    with pytest.raises(Unsupported, match=r"2048 positions.*need 3016"):
        engine.begin(3016)
    with pytest.raises(Unsupported, match=r"2048 positions.*need 2049"):
        engine.logits(torch.zeros(1, 2049, dtype=torch.int64))


def test_inputs_of_our_codes_are_rounded_where_that_is_asked_for(tmp_path: Path) -> None:
    subject = RoundToNearest(4, 32, True).apply(tiny_subject("llama"), NO_DATA)
    engine = loaded(subject, tmp_path, activations="int8")
    assert not engine.exact
    expected = Eager("cpu", 1).load(tmp_path / "artifact").logits(TOKEN_IDS)
    assert 1e-4 < float((engine.logits(TOKEN_IDS) - expected).norm() / expected.norm()) < 0.05
    with pytest.raises(Unsupported, match=r"no weight is a code.*use activations=float"):
        loaded(tiny_subject("llama"), tmp_path / "floats", activations="int8")
