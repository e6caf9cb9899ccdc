"""Promise 16, of bits, bytes, memory and arithmetic: what is claimed of them is found out, or has no effect."""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from squeeze.artifacts import format as artifact
from squeeze.core import landlock
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes import alone, memory, size
from squeeze.probes.inspection import Inspection, inspect
from squeeze.runtimes.eager import Eager
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.plugins import install
from tests.techniques.test_contract import NAMES, apply
from tests.tiny import tiny_subject

PROTOCOL = {"prompt_tokens": 16, "batch_sizes": [1]}
TEXT = (torch.arange(64) * 7 % 251)[None]
DENSE = pytest.approx(16, rel=0.05)  # stored bits a weight of a bfloat16 model

pytestmark = pytest.mark.promise(16)
needs_landlock = pytest.mark.skipif(
    landlock._call(landlock.CREATE_RULESET, None, 0, landlock.VERSION) < 1, reason="the kernel has no Landlock"
)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baseline")
    artifact.save(tiny_subject("llama", "bfloat16"), folder)
    return folder


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The layers of tests/faults/cheats/dishonest.py, as a plugin offers them."""
    site = tmp_path_factory.mktemp("site")
    source = Path(__file__).with_name("dishonest.py").read_text()
    install(site, "liars", {"layers/dishonest.py": source})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield importlib.import_module("liars.layers.dishonest")


def look(folder: Path, baseline: Path) -> Inspection:
    return inspect(folder, baseline, Eager("cpu", 1).load(folder), PROTOCOL, TEXT)


def with_layers(kind: Any) -> Subject:
    """The tiny model, its matrices held by dishonest layers."""
    subject = tiny_subject("llama", "bfloat16")
    for name, layer in architecture.block_linears(subject.model).items():
        architecture.replace(subject.model, name, kind.of(architecture.weight(layer).clone()))
    return subject


def found_of(kind: Any, folder: Path, baseline: Path, **claims: Any) -> Inspection:
    artifact.save(with_layers(kind).claiming(**claims), folder)
    return look(folder, baseline)


def said(found: Inspection, words: str) -> bool:
    return any(words in each for each in found.mismatches)


@pytest.mark.parametrize("technique", NAMES)
def test_no_honest_technique_is_called_dishonest(technique: str, tmp_path: Path, baseline: Path) -> None:
    folder = tmp_path / "artifact"  # beside the cache of the test
    artifact.save(apply(technique, tiny_subject("llama", "bfloat16")), folder)
    assert look(folder, baseline).mismatches == []


def test_an_honest_layer_of_a_plugin_is_not_called_dishonest(
    layers: ModuleType, tmp_path: Path, baseline: Path
) -> None:
    assert found_of(layers.Dense, tmp_path / "dense", baseline).mismatches == []
    assert found_of(layers.Hiding, tmp_path / "int8", baseline, bits=8).mismatches == []


@pytest.mark.parametrize("kind", ["ShowsZeros", "ShowsZerosOfUnits"])
def test_zeros_that_are_only_shown_are_found(kind: str, layers: ModuleType, tmp_path: Path, baseline: Path) -> None:
    found = found_of(getattr(layers, kind), tmp_path, baseline, sparsity=0.5)
    assert found.figures["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert said(found, "dequantize != forward: model.layers.0.self_attn.q_proj")


def test_levels_that_are_only_shown_are_found(layers: ModuleType, tmp_path: Path, baseline: Path) -> None:
    found = found_of(layers.ShowsLevels, tmp_path, baseline)
    assert said(found, "dequantize != forward")


def test_ten_times_the_parameters_have_no_effect(tmp_path: Path, baseline: Path) -> None:
    subject = tiny_subject("llama", "bfloat16")
    artifact.save(subject.claiming(parameters=10 * size.stored_weights(baseline)), tmp_path)
    found = look(tmp_path, baseline)
    assert found.figures["effective_bits"] == DENSE
    assert (found.figures["bytes_real"], found.figures["memory_real"]) == (False, False)
    assert said(found, f"claimed {10 * size.stored_weights(baseline):,} parameters, found")


def test_ten_times_the_weights_of_a_layer_have_no_effect(layers: ModuleType, tmp_path: Path, baseline: Path) -> None:
    found = found_of(layers.SaysWide, tmp_path, baseline, parameters=size.stored_weights(baseline))
    assert found.figures["effective_bits"] == DENSE
    assert found.figures["block_effective_bits"] == DENSE
    assert said(found, "q_proj claims 40,960 weights, found 64 x 64")


def test_weights_in_the_description_count(layers: ModuleType, tmp_path: Path, baseline: Path) -> None:
    found = found_of(layers.Encoded, tmp_path, baseline)
    assert found.figures["effective_bits"] > 32
    assert said(found, "most: artifact.json")


def test_weights_in_the_configuration_count(tmp_path: Path, baseline: Path) -> None:
    subject = tiny_subject("llama", "bfloat16")
    subject.model.config.more = base64.b64encode(bytes(2_000_000)).decode()
    artifact.save(subject, tmp_path)
    found = look(tmp_path, baseline)
    assert found.figures["bytes"] > 2_600_000
    assert said(found, "most: config.json")


FILES = ("generation_config.json", "tokenizer.json", "chat_template.jinja", "more/build.json", "more/model.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_weights_in_any_file_count(name: str, tmp_path: Path, baseline: Path) -> None:
    artifact.save(tiny_subject("llama", "bfloat16"), tmp_path)
    before = size.figures(tmp_path, baseline)["bytes"]
    assert size.mismatches(tmp_path, baseline, size.stored_weights(baseline)) == []
    (tmp_path / name).parent.mkdir(exist_ok=True)
    with (tmp_path / name).open("ab") as file:
        file.write(bytes(100_000))
    assert size.figures(tmp_path, baseline)["bytes"] == before + 100_000
    (told,) = size.mismatches(tmp_path, baseline, size.stored_weights(baseline))
    assert f"most: {name}" in told


def test_weights_in_added_tokens_count(tmp_path: Path, baseline: Path) -> None:
    subject = tiny_subject("llama", "bfloat16")
    subject.tokenizer.add_tokens([f"<{base64.b64encode(bytes(90)).decode()}{number}>" for number in range(200)])
    artifact.save(subject, tmp_path)
    assert "most: tokenizer.json" in size.mismatches(tmp_path, baseline, size.stored_weights(baseline))[0]


def test_weights_in_the_header_of_a_weight_file_count(tmp_path: Path, baseline: Path) -> None:
    artifact.save(tiny_subject("llama", "bfloat16"), tmp_path)
    before = size.figures(tmp_path, baseline)["bytes"]
    path = tmp_path / artifact.WEIGHTS
    save_file(load_file(path), path, metadata={"format": "pt", "more": "x" * 100_000})
    assert size.figures(tmp_path, baseline)["bytes"] >= before + 100_000


HIDDEN = ("InTensor", "InList", "InClosure", "InDefault", "InGlobal", "InGenerator", "InArray", "InBytes", "OnFirstUse")


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_hidden_copy_is_found(
    kind: str, layers: ModuleType, tmp_path: Path, baseline: Path, figure: Callable[[str], None]
) -> None:
    found = found_of(getattr(layers, kind), tmp_path, baseline, bits=8)
    layers.CACHE.clear()
    assert said(found, "that the model can reach")
    assert found.figures["memory_real"] is False
    assert found.figures["live_bytes"] > 2 * size.stored_weights(baseline)
    figure(f"hidden {kind.removeprefix('In').lower()}: {found.mismatches[0]}")


def test_a_copy_that_only_a_library_knows_shows_in_the_resident_memory() -> None:
    from ctypes import CDLL, c_void_p, memset

    library = CDLL(None)
    library.malloc.restype = c_void_p
    count = 400_000_000
    address, usage = memory.measured(lambda: library.malloc(c_void_p(count)))
    memset(address, 1, count)
    try:
        (told,) = memory.mismatches(memory.kept(usage), 100_000_000, "cpu")
        assert "claimed 100,000,000 bytes in memory, loading kept 4" in told
    finally:
        library.free(c_void_p(address))
    assert memory.mismatches(memory.kept(usage), 100_000_000, "cpu") == []


def test_tensors_that_the_model_does_not_show_are_found(
    layers: ModuleType, tmp_path: Path, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "more", torch.zeros(20_000_000, dtype=torch.uint8), raising=False)
    found = found_of(layers.Dense, tmp_path, baseline)
    assert said(found, "in tensors that the model does not show")
    assert found.figures["memory_real"] is False


def test_codes_that_are_called_narrow_are_found(layers: ModuleType, tmp_path: Path, baseline: Path) -> None:
    found = found_of(layers.SaysNarrow, tmp_path, baseline)
    assert found.figures["running_bits"] == 16
    assert found.figures["memory_real"] is False
    assert said(found, "q_proj claims codes of 4 bits in memory, found 16")


def test_codes_are_not_narrower_for_a_block_that_all_layers_reach(
    layers: ModuleType, tmp_path: Path, baseline: Path
) -> None:
    found = found_of(layers.SaysNarrowBehindOne, tmp_path, baseline)
    del layers.TOGETHER[1:]
    assert found.figures["running_bits"] > 8
    assert said(found, "q_proj claims codes of 4 bits in memory, found 13.3")


@pytest.mark.parametrize("kind", ["SaysIntegers", "ForShow", "Small"])
def test_integers_for_show_are_found(kind: str, layers: ModuleType, tmp_path: Path, baseline: Path) -> None:
    found = found_of(getattr(layers, kind), tmp_path, baseline)
    assert (found.figures["compute_real"], found.figures["arithmetic"]) == (False, "bfloat16")
    assert said(found, "claimed products of integers, found floating point")


def test_four_bits_with_a_scale_for_every_two_weights_are_not_four(tmp_path: Path, baseline: Path) -> None:
    subject = RoundToNearest(4, 2, symmetric=True).apply(tiny_subject("llama", "bfloat16"), CalibrationText.empty())
    claims = {name: value for name, value in subject.claims.items() if name != "group_size"}
    artifact.save(Subject(subject.model, subject.tokenizer, claims), tmp_path)
    assert said(look(tmp_path, baseline), "claimed 4 bits, stored 12.00 a weight")


def filed(kind: Any, folder: Path) -> Any:
    """Layers of a kind whose weights lie in a folder, a file each."""

    class Filed:
        count = 0

        @classmethod
        def of(cls, weight: torch.Tensor) -> torch.nn.Module:
            folder.mkdir(exist_ok=True)
            path = folder / f"{cls.count}.bin"
            cls.count += 1
            path.write_bytes(weight.float().numpy().tobytes())
            return kind(weight.shape[1], weight.shape[0], False, str(path))

    return Filed


def test_weights_in_a_file_of_their_own_count(layers: ModuleType, tmp_path: Path, baseline: Path) -> None:
    """They are read when the layer first runs, and mapped: both their bytes on disk and in memory are found."""
    folder = tmp_path / "artifact"
    found = found_of(filed(layers.FromFile, folder), folder, baseline)
    assert found.figures["effective_bits"] > 16
    assert said(found, "files without tensors hold")
    assert said(found, "that the model can reach")
    assert alone.mismatches(folder, Eager("cpu", 1).load(folder).subject.model, "cpu") == []


@needs_landlock
@pytest.mark.parametrize(
    ("kind", "words"),
    [("FromFile", "does not load from its own folder alone"), ("FromElsewhere", "predicts otherwise")],
)
def test_weights_outside_the_artifact_are_missed(kind: str, words: str, layers: ModuleType, tmp_path: Path) -> None:
    artifact.save(with_layers(filed(getattr(layers, kind), tmp_path / "elsewhere")), tmp_path / "artifact")
    model = Eager("cpu", 1).load(tmp_path / "artifact").subject.model
    (told,) = alone.mismatches(tmp_path / "artifact", model, "cpu")
    assert words in told


def test_only_what_brings_code_of_its_own_is_loaded_alone(baseline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", None)
    assert alone.mismatches(baseline, torch.nn.Linear(1, 1), "cpu") == []


def test_what_it_says_of_parameters_is_not_read(tmp_path: Path, baseline: Path) -> None:
    artifact.save(tiny_subject("llama", "bfloat16"), tmp_path)
    before = size.figures(tmp_path, baseline)
    description = json.loads((tmp_path / artifact.DESCRIPTION).read_text())
    (tmp_path / artifact.DESCRIPTION).write_text(json.dumps({**description, "parameters": 1}))
    assert size.figures(tmp_path, baseline)["effective_bits"] == before["effective_bits"]
    assert size.mismatches(tmp_path, baseline, size.stored_weights(baseline))[0].startswith("claimed 1 parameters")
