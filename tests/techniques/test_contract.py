"""What every technique in conf/technique/ owes: it compresses, saves, loads, and computes the same after loading."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.artifacts.build import resolve_step
from squeeze.core import cache, paths
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters, is_compressed, spec, weight_numel
from squeeze.models.subject import Subject
from squeeze.request.cell import Cell
from squeeze.request.expand import cells
from squeeze.request.steps import find
from squeeze.techniques.calibration import CalibrationText
from tests.snippets import CLASSIFIERS_ONLY
from tests.tiny import ARCHITECTURES, tiny_subject

ALL = {path.stem for path in (paths.conf() / "technique").glob("*.yaml")}
# Those have tests of their own: test_classifiers.py, quantization/test_gguf_quantize.py, inference/test_fastv.py.
OF_AN_ENGINE = {"gguf_quantize", "gguf_quantize_plain"}  # whose library has an environment of its own
PICTURES_ONLY = {"fastv"}  # other models are refused
NAMES = sorted(ALL - CLASSIFIERS_ONLY - OF_AN_ENGINE - PICTURES_ONLY)
FORGETFUL = {"streaming", "snapkv", "h2o"}
DRAFTING = {"speculative_layer_drop", "speculative_rtn", "speculative_student", "prompt_lookup"}
# The baseline, the control, and what compresses no weights.
DENSE = {"none", "finetune", "kv_cache", "lora", "teal", "untie", *FORGETFUL, *DRAFTING}
DISTILLED = {"distil", "distil_hidden", "distil_attention", "distil_top_k", "mutual", "on_policy", "self_distillation"}
DISTILLED |= {"student_narrow_distil", "student_scratch_distil"}
RECOVERED = {"lora", "qlora", "gptq_recover", "kmeans_recover", "svd_recover", "wanda_recover", "layer_drop_recover"}
RECOVERED |= {"shared_blocks_recover"}
CHAINED = {"layer_drop_qat", "layer_drop_distil_gptq", "svd_recover_rtn", "wanda_recover_rtn"}
PRUNED_IN_TRAINING = {"l1", "gradual", "gradual_rigl"}
TRAINED = DISTILLED | RECOVERED | CHAINED
BY_GRADIENT = {"neurons", "heads", "neurons_gptq"}  # of the loss
# They look at predicted tokens; an encoder predicts none.
NEED_A_HEAD = {"finetune", "kv_cache", "layer_drop_perplexity", "qat", "qat_lsq", "untie"}
NEED_A_HEAD |= {*BY_GRADIENT, *FORGETFUL, *PRUNED_IN_TRAINING, *TRAINED, *DRAFTING}
REFUSE = NEED_A_HEAD - (TRAINED - {"lora", "self_distillation"})  # whose first step needs none
SLICED = {"slicegpt", "slicegpt_rtn"}  # of an encoder's states, which its norms write as well, there is no such form
NO_ENCODERS = NEED_A_HEAD | SLICED | {"rtn_prompt_lookup"}
PAIRS = [(name, shape) for name in NAMES for shape in ARCHITECTURES if not (shape == "bert" and name in NO_ENCODERS)]
TOKEN_IDS = torch.arange(24).reshape(2, 12)
SMALL = 0.9  # of the dense bytes of the same parameters in the same dtype


# Sizes of what is smaller than the tiny models; those in the recipes are for real ones.
SIZES: dict[str, dict[str, float]] = {
    "student_narrow": {"channels": 0.125},
    "student_scratch": {"layers": 1, "hidden": 64, "channels": 64, "heads": 4},
}
SIZES |= {name: {"neurons_kept": 0.125} for name in ("neurons", "neurons_wanda")}
SIZES |= {"neurons_gptq": {"neurons_kept": 0.5}, "heads": {"heads_kept": 0.25}}
SIZES |= {f"{name}_distil": sizes for name, sizes in SIZES.items() if name.startswith("student")}
SIZES["wanda_eora"] = {"sparsity": 0.6}  # a change beside such small layers takes much of what zeros save


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a teacher has said is kept; not where a person keeps it."""
    with cache.using(tmp_path_factory.mktemp("cache")):
        yield


def cell_of(technique: str) -> Cell:
    sizes = [f"technique.steps.0.{name}={size}" for name, size in SIZES.get(technique, {}).items()]
    axes = ["group_size=32", "training_steps=2", "weights_kept=0.5", "rank=2"]
    (cell,) = cells(["model=tiny_llama", f"technique={technique}", *axes, *sizes])
    return cell


def compressed(technique: str, architecture: str, dtype: str = "float32") -> Subject:
    """The tiny model after the technique's steps."""
    return apply(technique, tiny_subject(architecture, dtype))


def calibration_of(subject: Subject) -> CalibrationText:
    """Made-up text, and the subject's model as it is now for a baseline."""
    model = copy.deepcopy(subject.model)
    text, held_out = (torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    return CalibrationText(text, held_out=held_out, load_baseline=lambda: copy.deepcopy(model))


def apply(technique: str, subject: Subject) -> Subject:
    cell, calibration = cell_of(technique), calibration_of(subject)

    def draft() -> Subject:
        guessing = dataclasses.replace(subject, model=calibration.baseline())
        for step in cell.technique.get("draft", ()):
            guessing = resolve_step(step).apply(guessing, calibration)
        return guessing

    calibration = dataclasses.replace(calibration, load_draft=draft)
    made = subject
    for step in cell.technique["steps"]:
        made = resolve_step(step).apply(made, calibration)
    return made


@torch.inference_mode()
def outputs(subject: Subject) -> torch.Tensor:
    return subject.model(TOKEN_IDS)[0].float()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("technique", "architecture"), PAIRS)
def test_it_computes_the_same_after_saving_and_loading(
    technique: str, architecture: str, dtype: str, tmp_path: Path
) -> None:
    subject = compressed(technique, architecture, dtype)
    artifact.save(subject, tmp_path)
    expected = outputs(subject)
    stored, running = artifact.load(tmp_path, prepare=False), artifact.load(tmp_path)
    assert torch.equal(outputs(stored), expected)
    tolerance = (1e-4 if running.model.dtype == torch.float32 else 0.03) * float(expected.abs().max())
    assert torch.allclose(outputs(running), expected, atol=tolerance, rtol=0)
    assert running.claims.items() >= json.loads(json.dumps(subject.claims)).items()
    assert (running.draft is None) is (subject.draft is None)


@pytest.mark.parametrize(("technique", "architecture"), [pair for pair in PAIRS if pair[0] not in DENSE])
def test_it_shrinks_on_disk_and_changes_the_model(technique: str, architecture: str, tmp_path: Path) -> None:
    subject = compressed(technique, architecture, "bfloat16")
    artifact.save(subject, tmp_path)
    original = tiny_subject(architecture, "bfloat16")
    weights = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert weights < SMALL * count_parameters(original.model) * subject.model.dtype.itemsize
    assert artifact.describe(tmp_path)["parameters"] == count_parameters(original.model)
    error = (outputs(subject) - outputs(original)).norm() / outputs(original).norm()
    assert 1e-4 < error < 1.5


@pytest.mark.parametrize("technique", sorted(REFUSE))
def test_what_needs_a_head_refuses_an_encoder_and_leaves_it_as_it_was(technique: str) -> None:
    subject = tiny_subject("bert")
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    with pytest.raises(Unsupported, match="has no language-modelling head"):
        apply(technique, subject)
    after = subject.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("technique", NAMES)
def test_equal_requests_give_equal_artifacts(technique: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        artifact.save(compressed(technique, "llama"), tmp_path / folder)
    assert artifact.content_hash(tmp_path / "a") == artifact.content_hash(tmp_path / "b")


@pytest.mark.parametrize("technique", NAMES)
def test_it_leaves_the_process_as_it_was(technique: str) -> None:
    compressed(technique, "llama")  # libraries may set themselves up when they are first imported

    def surroundings() -> tuple[object, ...]:
        return (
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.backends.quantized.engine,
            torch.get_rng_state().tolist(),
            dict(os.environ),
        )

    before = surroundings()
    compressed(technique, "llama")
    assert surroundings() == before


@pytest.mark.parametrize("technique", NAMES)
def test_layers_tell_what_they_are(technique: str) -> None:
    for module in compressed(technique, "llama").model.modules():
        if is_compressed(module):
            assert spec(type(module)(**spec(module))) == spec(module)
            assert isinstance(module.memory_real, bool)
            assert isinstance(module.compute_real, bool)
            assert weight_numel(module) == module.dequantize().numel()


@pytest.mark.parametrize("technique", NAMES)
def test_what_its_fields_are_declared_to_allow_is_what_it_has_code_for(technique: str) -> None:
    """A request is refused by the declaration, without torch; here it is held against what the code does."""
    calibration = calibration_of(tiny_subject("llama"))
    cell = cell_of(technique)
    calibration = dataclasses.replace(calibration, load_draft=lambda: tiny_subject("llama", seed=1))
    for step in (*cell.technique["steps"], *cell.technique.get("draft", ())):
        made, allowed = resolve_step(step), find(step["_target_"]).allowed
        assert {"bits", "high_bits", "embed_bits", "grid"} & step.keys() <= allowed.keys()
        for field, values in allowed.items():
            for value in {*range(1, 17), "neither"} - {*values}:
                with pytest.raises(Unsupported):
                    dataclasses.replace(made, **{field: value}).apply(tiny_subject("llama"), calibration)
        for bits in allowed.get("bits", ()):
            dataclasses.replace(made, bits=bits).apply(tiny_subject("llama"), calibration)
