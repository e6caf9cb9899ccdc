"""llama.cpp's quantizer: its blocks come back into the right rows, weighed by what layers read; without it, one line.

What needs the library itself is skipped where it is not installed; ``nox -s runtimes`` makes its environment.
"""

from __future__ import annotations

import ctypes
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.artifacts.build import resolve_step
from squeeze.core.errors import Unsupported
from squeeze.core.paths import PACKAGE
from squeeze.layers.ggml_linear import GgmlLinear
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models import architecture, gguf_file, llama_library
from squeeze.models.gguf_file import Stored
from squeeze.models.gguf_names import parts
from squeeze.models.subject import Subject
from squeeze.request.expand import cells
from squeeze.request.steps import find
from squeeze.runner import equipment
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization import llama_quantizer
from squeeze.techniques.quantization.gguf_quantize import GGUFQuantize, importance_of, put_blocks
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_subject

TOKEN_IDS = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))
CALIBRATION = CalibrationText(TOKEN_IDS)
NO_DATA = CalibrationText.empty()


def tied(dtype: str = "float32") -> Subject:
    subject = tiny_subject("llama", dtype)
    subject.model.lm_head.weight = subject.model.model.embed_tokens.weight
    subject.model.config.tie_word_embeddings = True
    return subject


def quantized(subject: Subject, path: Path, kinds: dict[str, str]) -> Path:
    """A GGUF of a subject whose matrices are of these kinds, by the beginnings of their names, the package's work."""
    stored = gguf_file.tensors(subject.model)
    for name, each in stored.items():
        kind = next((kinds[begin] for begin in kinds if begin in name), None)
        if kind and each.data.ndim > 1:
            blocks = gguf.quants.quantize(each.data.float().numpy(), gguf.GGMLQuantizationType[kind])
            stored[name] = Stored(kind, torch.from_numpy(blocks))
    gguf_file.write(subject, stored, path)
    return path


def test_blocks_come_back_to_the_rows_that_they_stand_for(tmp_path: Path) -> None:
    """Q8_0 is so near that no other row would do."""
    subject, original = tiny_subject("llama"), tiny_subject("llama")
    put_blocks(
        subject.model, quantized(original, tmp_path / "q.gguf", {"blk": "Q8_0", "token": "Q8_0", "output": "Q8_0"})
    )
    places = [part.module for part in parts(original.model) if "norm" not in part.name]
    assert len(places) == 16
    for name in places:
        layer = subject.model.get_submodule(name)
        assert isinstance(layer, GgmlLinear), name
        off = (layer.dequantize() - original.model.get_submodule(name).weight).abs().max()
        assert 0 < off < 0.004, name


@torch.inference_mode()
def test_a_tied_table_is_one_layer_in_both_places(tmp_path: Path) -> None:
    subject = tied("bfloat16")
    claims = put_blocks(
        subject.model, quantized(tied("bfloat16"), tmp_path / "q.gguf", {"blk": "Q4_1", "token": "Q8_0"})
    )
    model = subject.model
    assert model.lm_head is model.model.embed_tokens
    assert model.config.tie_word_embeddings is False
    assert claims == {"embed_bits": 8, "bits": 4.0, "low_bits": 4, "group_size": 32, "symmetric": False}
    expected = model(TOKEN_IDS).logits
    artifact.save(subject, tmp_path / "artifact")
    again = artifact.load(tmp_path / "artifact").model
    assert again.lm_head is again.model.embed_tokens
    assert torch.equal(again(TOKEN_IDS).logits, expected)


def test_bits_are_those_of_all_weights_and_floats_stay(tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    claims = put_blocks(
        subject.model, quantized(tiny_subject("llama"), tmp_path / "q.gguf", {"ffn_down": "Q8_0", "ffn_up": "Q5_0"})
    )
    assert claims == {"bits": 6.5, "low_bits": 5, "group_size": 32, "symmetric": True}
    assert isinstance(subject.model.get_submodule("model.layers.0.self_attn.q_proj"), torch.nn.Linear)
    with pytest.raises(Unsupported, match="whole blocks of 32 weights"):
        put_blocks(tiny_subject("llama").model, quantized(tiny_subject("llama"), tmp_path / "floats.gguf", {}))


def test_importance_is_the_mean_square_of_what_a_layer_reads() -> None:
    subject, name = tiny_subject("llama"), "model.layers.1.mlp.down_proj"
    read: list[torch.Tensor] = []
    hook = subject.model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    subject.model(TOKEN_IDS)
    hook.remove()
    found = importance_of(subject.model, CALIBRATION)
    assert set(found) == {
        f"{part.name}.weight" for part in parts(subject.model) if "blk" in part.name and "norm" not in part.name
    }
    expected = read[0].flatten(0, 1).square().mean(dim=0)
    torch.testing.assert_close(torch.from_numpy(found["blk.1.ffn_down.weight"]), expected, rtol=1e-2, atol=0)


class Importance(ctypes.Structure):
    """One tensor's, as llama.h has it; the last one has no name."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t))


@pytest.mark.parametrize(
    "pointer", [ctypes.c_void_p, ctypes.POINTER(Importance)], ids=["without a type", "with its own"]
)
def test_importance_is_handed_over_as_c_reads_it(pointer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever type the package gives to the pointer."""
    given = {"blk.0.ffn_up.weight": np.arange(3.0), "blk.1.attn_q.weight": np.array([0.5, 2.0], np.float32)}
    seen: dict[str, list[float]] = {}

    class Parameters(ctypes.Structure):
        _fields_ = (("nthread", ctypes.c_int32), ("ftype", ctypes.c_int), ("imatrix", pointer))

    def works(_: bytes, target: bytes, reference: Any) -> int:
        parameters = reference._obj
        entries = ctypes.cast(parameters.imatrix, ctypes.POINTER(Importance))
        for number in range(len(given)):
            seen[entries[number].name.decode()] = entries[number].data[: entries[number].size]
        assert entries[len(given)].name is None
        assert (parameters.ftype, parameters.nthread, target) == (15, 2, bytes(tmp_path / "q.gguf"))
        return 0

    api = SimpleNamespace(llama_model_quantize_default_params=Parameters, llama_model_quantize=works)
    monkeypatch.setattr(llama_quantizer, "library", lambda: llama_library.Library(api, deque(), None))
    llama_quantizer.quantize(tmp_path / "f.gguf", tmp_path / "q.gguf", 15, given, 2)
    assert seen == {name: values.tolist() for name, values in given.items()}


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    llama_library.library.cache_clear()
    monkeypatch.setattr(llama_library, "find_spec", lambda _: None)


@pytest.mark.usefixtures("no_library")
def test_without_the_library_one_line_says_how_to_get_it_and_nothing_has_changed() -> None:
    subject = RoundToNearest(4, 32, True).apply(tiny_subject("llama"), NO_DATA)
    with pytest.raises(Unsupported, match=r"not installed here; `nox -s runtimes -- llama_cpp` makes"):
        GGUFQuantize("Q4_K_M").apply(subject, CALIBRATION)
    assert isinstance(subject.model.get_submodule("model.layers.0.mlp.up_proj"), QuantizedLinear)


def test_what_llama_cpp_has_not_is_refused() -> None:
    with pytest.raises(Unsupported, match="no type 'Q9_K'"):
        GGUFQuantize("Q9_K").apply(tiny_subject("llama"), CALIBRATION)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="IQ2_XXS with an importance matrix alone"):
        GGUFQuantize("IQ2_XXS", imatrix=False).apply(tiny_subject("llama"), NO_DATA)


def test_every_type_that_a_request_may_have_is_one_of_llama_cpps() -> None:
    allowed = find("gguf_quantize.GGUFQuantize").allowed["gguf_type"]
    assert len(allowed) == 27
    assert {f"MOSTLY_{name}" for name in allowed} <= gguf.LlamaFileType.__members__.keys()


def test_its_build_runs_where_the_library_is_whatever_runtime_the_row_names() -> None:
    [cell] = cells(["model=tiny_llama", "technique=gguf_quantize_plain", "gguf_type=Q8_0", "runtime=eager"])
    assert [each.name for each in equipment.wanted(cell)] == ["llama_cpp"]


def test_the_version_in_keys_is_the_one_that_is_pinned() -> None:
    pins = (PACKAGE / "runtimes" / "requirements" / "llama_cpp.txt").read_text().splitlines()
    assert f"{llama_library.DISTRIBUTION}=={llama_library.VERSION}" in pins


def test_a_cell_names_its_type_and_reads_text_only_for_its_importance() -> None:
    calibrated, plain = cells(["model=tiny_llama", "technique=gguf_quantize,gguf_quantize_plain", "gguf_type=Q8_0"])
    assert [cell.label for cell in (calibrated, plain)] == [
        "tiny_llama-gguf_quantize-Q8_0",
        "tiny_llama-gguf_quantize_plain-Q8_0",
    ]
    assert calibrated.calibration["corpus"] == "wikipedia_train"
    assert plain.calibration == {}


@pytest.fixture
def built() -> None:
    pytest.importorskip(llama_library.PACKAGE, reason="llama.cpp is not built here: nox -s runtimes -- llama_cpp")


def made(kind: Any, calibration: CalibrationText = NO_DATA, **options: Any) -> Subject:
    return GGUFQuantize(kind, **options).apply(tied(), calibration)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0"])
def test_its_blocks_are_those_of_its_reference(kind: str) -> None:
    subject = made(kind, imatrix=False)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        expected = gguf.quants.quantize(
            tied().model.get_submodule(name).weight.numpy(), gguf.GGMLQuantizationType[kind]
        )
        assert np.array_equal(subject.model.get_submodule(name).blocks.numpy(), expected), name


@pytest.mark.usefixtures("built")
def test_importance_moves_errors_away_from_what_matters() -> None:
    name = "model.layers.1.mlp.down_proj"
    weight = tied().model.get_submodule(name).weight
    energy = torch.from_numpy(importance_of(tied().model, CALIBRATION)["blk.1.ffn_down.weight"])
    lost = []
    for subject in (made("Q4_K_S", imatrix=False), made("Q4_K_S", CALIBRATION)):
        difference = subject.model.get_submodule(name).dequantize() - weight
        lost.append(float((difference.square() * energy).sum()))
    assert lost[1] < lost[0]


@pytest.mark.usefixtures("built")
def test_the_steps_of_a_cell_are_made_with_it_and_leave_no_matrix_of_floats(tmp_path: Path) -> None:
    (cell,) = cells(["model=tiny_llama", "technique=gguf_quantize", "gguf_type=IQ4_NL"])
    subject = resolve_step(cell.technique["steps"][0]).apply(tied(), CALIBRATION)
    artifact.save(subject, tmp_path)
    stored = artifact.load(tmp_path, prepare=False)
    assert "IQ4_NL" in {layer.kind for layer in stored.model.modules() if isinstance(layer, GgmlLinear)}
    assert not architecture.block_linears(stored.model)
    assert torch.equal(stored.model(TOKEN_IDS).logits, subject.model(TOKEN_IDS).logits)
