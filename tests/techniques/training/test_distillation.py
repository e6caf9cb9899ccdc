"""Distillation: a student comes nearer to its teacher, of which nothing changes, by every option."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from squeeze.core import cache
from squeeze.core.errors import Unsupported
from squeeze.layers.master_weights import MasterLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.request.expand import cells
from squeeze.techniques import training_loop
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Workplace
from squeeze.techniques.losses import divergence, next_token
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.training import distillation, top_k
from squeeze.techniques.training.distillation import Distillation
from squeeze.techniques.training.finetune import Finetune
from tests.tiny import CAUSAL, tiny_model, tiny_subject
from tests.unchanged import not_loaded, unchanged

TOKEN_IDS = torch.randint(256, (8, 32), generator=torch.Generator().manual_seed(0))
HELD_OUT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(1))


def calibration(name: str = "llama", dtype: str = "float32", **fields: Any) -> CalibrationText:
    """The text, and a teacher of other weights than the student's."""
    return CalibrationText(TOKEN_IDS, load_baseline=lambda: tiny_model(name, dtype, seed=1), **fields)


CALIBRATION = calibration()


def technique(**fields: Any) -> Distillation:
    return Distillation(**{"training_steps": 6, "windows": 2, "learning_rate": 3e-3, **fields})


def distance(model: nn.Module, name: str = "llama", token_ids: Tensor = TOKEN_IDS) -> float:
    with torch.no_grad():
        teacher = tiny_model(name, seed=1)
        return divergence(model.float(), teacher, token_ids, 1.0).item()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"scope": "linear"},
        {"divergence": "reverse"},
        {"divergence": "jsd", "beta": 0.3},
        {"temperature": 2.0, "alpha": 0.9},
        {"match": "hidden"},
        {"match": "attention", "match_weight": 0.1},
        {"top_k": 200},
        {"top_k": 200, "match": "hidden"},
        {"top_k": 200, "temperature": 2.0},
        {"at_once": 1},
    ],
    ids=str,
)
def test_the_student_comes_nearer_to_its_teacher(fields: dict[str, Any], tmp_path: Path) -> None:
    before = distance(tiny_model("llama"))
    with cache.using(tmp_path):
        trained = technique(training_steps=30, **fields).apply(tiny_subject("llama"), CALIBRATION)
    assert distance(trained.model) < 0.9 * before
    assert trained.claims["training_tokens"] == 30 * 2 * 32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CAUSAL)
def test_all_is_trained_or_the_linear_layers_alone(name: str, dtype: str) -> None:
    before = dict(tiny_model(name, dtype).named_parameters())
    linears = {f"{key}.weight" for key in architecture.block_linears(tiny_model(name))}
    for scope, expected in (("all", before.keys()), ("linear", linears)):
        trained = technique(scope=scope).apply(tiny_subject(name, dtype), calibration(name, dtype))
        after = dict(trained.model.named_parameters())
        moved = {key for key, parameter in after.items() if not torch.equal(parameter, before[key])}
        # A bias of keys moves all scores of a query alike, so it has nothing to learn.
        assert moved >= {key for key in expected if not key.endswith("k_proj.bias")}
        assert moved <= expected
        assert trained.claims["trainable_parameters"] == sum(before[key].numel() for key in expected)
        assert {parameter.dtype for parameter in after.values()} == {getattr(torch, dtype)}
        assert not any(parameter.requires_grad for parameter in after.values())
        assert not any(isinstance(module, MasterLinear) for module in trained.model.modules())


def test_the_teacher_is_the_cells_baseline_and_stays_what_it_was() -> None:
    loaded: list[nn.Module] = []

    def load() -> nn.Module:
        loaded.append(tiny_model("llama", seed=1))
        return loaded[-1]

    technique(match="attention").apply(tiny_subject("llama"), replace(CALIBRATION, load_baseline=load))
    [teacher] = loaded
    known = tiny_model("llama", seed=1).state_dict()
    assert all(torch.equal(tensor, known[key]) for key, tensor in teacher.state_dict().items())
    assert teacher.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


@pytest.mark.parametrize("scope", ["all", "linear"])
def test_without_a_teacher_it_learns_the_text_and_loads_none(scope: str) -> None:
    """The ablation: of the linear layers alone, it is the control's training, bit for bit."""
    alone = CalibrationText(TOKEN_IDS)
    found = technique(alpha=0.0, scope=scope, top_k=5).apply(tiny_subject("llama"), alone)
    assert next_token(found.model, TOKEN_IDS) < next_token(tiny_model("llama"), TOKEN_IDS)
    assert "top_k_mass" not in found.claims
    control = Finetune(6, 2, 3e-3).apply(tiny_subject("llama"), alone).model.state_dict()
    same = all(torch.equal(tensor, control[key]) for key, tensor in found.model.state_dict().items())
    assert same == (scope == "linear")


def test_kept_tokens_stand_in_for_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but one: the same student; and of the held-out windows, too, the teacher has been asked."""
    text = calibration(held_out=HELD_OUT)
    whole = technique().apply(tiny_subject("llama"), text)
    shown: list[Any] = []
    real = distillation.train

    def spy(*arguments: Any, **named: Any) -> int:
        shown.append((arguments[2].tolist(), named["held_out"].tolist()))
        return real(*arguments, **named)

    monkeypatch.setattr(distillation, "train", spy)
    with cache.using(tmp_path):
        kept = technique(top_k=259).apply(tiny_subject("llama"), text)
        monkeypatch.setattr(top_k, "last_hidden_state", None)
        workplace = Workplace()
        again = technique(top_k=259).apply(tiny_subject("llama"), replace(text, workplace=workplace))
    assert workplace.reused_seconds > 0
    assert kept.claims["top_k_mass"] == again.claims["top_k_mass"] == pytest.approx(1, abs=0.01)
    assert shown[0] == shown[1] == ([[number] for number in range(8)], [[number] for number in range(8, 12)])
    assert distance(kept.model) == pytest.approx(distance(whole.model), rel=1e-3)
    known = again.model.state_dict()
    assert all(torch.equal(tensor, known[key]) for key, tensor in kept.model.state_dict().items())


def test_what_the_teachers_reading_took_is_a_part_of_every_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it reads in each step; whoever paid for it. Of its energy nobody knows."""
    clock = count(step=1000.0)  # seconds, each time that the reading looks
    monkeypatch.setattr(top_k, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    first, later, without = (Workplace(meter=Meter()) for _ in range(3))
    with cache.using(tmp_path):
        for workplace in (first, later):
            technique(top_k=4).apply(tiny_subject("llama"), replace(CALIBRATION, workplace=workplace))
    technique().apply(tiny_subject("llama"), replace(CALIBRATION, workplace=without))
    assert (first.reused_seconds, later.reused_seconds) == (0, 1000)
    assert without.seconds < 1000 < min(first.seconds, later.seconds)
    assert max(first.seconds, later.seconds) < 2000
    assert first.joules is later.joules is None
    assert without.joules is not None


class Meter:
    """Counts nothing, but could."""

    joules: float | None = 0.0

    def start(self) -> None: ...

    def stop(self) -> None: ...


def test_no_more_windows_are_kept_than_are_read(tmp_path: Path) -> None:
    with cache.using(tmp_path):
        technique(training_steps=1, top_k=4).apply(tiny_subject("llama"), CALIBRATION)
    [folder] = [each for each in (tmp_path / "calibration").iterdir() if each.is_dir()]
    assert (folder / top_k.TENSORS).stat().st_size < 2 * 32 * (8 * 4 + 4) + 1000


def test_matching_counts_by_its_weight_and_its_projections_are_thrown_away() -> None:
    found = [technique(match="hidden", match_weight=w).apply(tiny_subject("llama"), CALIBRATION) for w in (0.0, 1.0)]
    plain = technique().apply(tiny_subject("llama"), CALIBRATION)
    weightless, matched = (subject.model.state_dict() for subject in found)
    for key, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(weightless[key], tensor, rtol=1e-3, atol=1e-5)
    assert matched.keys() == weightless.keys()
    assert any((tensor - weightless[key]).abs().max() > 1e-3 for key, tensor in matched.items())
    projections = 3 * 64 * 64  # of the embeddings and of two blocks: trained, though nobody keeps them
    trained = plain.claims["trainable_parameters"] + projections
    assert found[1].claims == {**plain.claims, "trainable_parameters": trained}


def test_training_runs_in_the_finished_models_arithmetic_on_float32_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    real = distillation.towards

    def spy(model: nn.Module, hidden: Tensor, *rest: Any) -> Tensor:
        up = model.model.layers[0].mlp.up_proj  # type: ignore[union-attr,index]
        seen.add((up.weight.dtype, up(hidden).dtype))
        return real(model, hidden, *rest)

    monkeypatch.setattr(distillation, "towards", spy)
    technique(training_steps=1).apply(tiny_subject("llama", "bfloat16"), calibration(dtype="bfloat16"))
    assert seen == {(torch.float32, torch.bfloat16)}


def test_a_killed_training_goes_on_to_the_same_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    steps, real, calls = technique(match="hidden"), distillation.towards, []

    def deadly(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    whole = steps.apply(tiny_subject("llama"), CALIBRATION).model.state_dict()
    monkeypatch.setattr(distillation, "towards", deadly)
    with pytest.raises(KeyboardInterrupt):
        steps.apply(tiny_subject("llama"), replace(CALIBRATION, workplace=Workplace(tmp_path)))
    continued = steps.apply(tiny_subject("llama"), replace(CALIBRATION, workplace=Workplace(tmp_path)))
    assert len(calls) == 4 + 3
    assert all(torch.equal(tensor, whole[key]) for key, tensor in continued.model.state_dict().items())


def test_recipes_are_rows_of_their_own_with_one_control() -> None:
    axes = ["model=tiny_llama", "training_steps=2"]
    planned = cells([*axes, "technique=distil,distil_hidden", "divergence=forward,reverse,jsd", "alpha=1,0"])
    [control] = cells([*axes, "technique=finetune"])
    assert len({cell.key for cell in planned}) == len({cell.label for cell in planned}) == 12
    assert {cell.training for cell in planned} == {control.training}
    assert [step["_target_"] for step in planned[0].technique["steps"]] == [
        "layer_drop.LayerDrop",
        "distillation.Distillation",
    ]


def test_recipes_are_distils_own_but_for_what_their_names_say() -> None:
    students = ["student_narrow", "student_scratch"]
    names = ["distil", "distil_hidden", "distil_attention", "distil_top_k", *(f"{name}_distil" for name in students)]
    made = cells(["model=tiny_llama", "training_steps=2", f"technique={','.join([*names, *students])}"])
    steps = {cell.technique["name"]: cell.technique["steps"] for cell in made}
    plain = steps["distil"][-1]
    apart = {name: {key: value for key, value in steps[name][-1].items() if value != plain[key]} for name in names}
    assert {name: fields for name, fields in apart.items() if fields} == {
        "distil_hidden": {"match": "hidden"},
        "distil_attention": {"match": "attention"},
        "distil_top_k": {"top_k": 64},
    }
    assert all(steps[name][-1].keys() == plain.keys() for name in names)
    for name in students:
        assert steps[f"{name}_distil"][:-1] == steps[name]


def other_vocabulary() -> Subject:
    subject = tiny_subject("llama")
    subject.model.resize_token_embeddings(300)  # type: ignore[operator]
    return subject


def packed() -> Subject:
    return RoundToNearest(4, 32, symmetric=True).apply(tiny_subject("llama"), CALIBRATION)


@pytest.mark.parametrize(
    ("subject", "fields", "words"),
    [
        (packed, {}, r"found 14 that are packed \(QuantizedLinear\); follow with recover"),
        (other_vocabulary, {}, "the student's vocabulary has 300 tokens, its teacher's 260, expected as many"),
        (lambda: tiny_subject("bert"), {}, "no language-modelling head"),
        (lambda: tiny_subject("llama"), {"divergence": "sideways"}, "no divergence 'sideways'"),
        (lambda: tiny_subject("llama"), {"match": "both"}, "no matching of 'both'"),
        (lambda: tiny_subject("llama"), {"scope": "head"}, "no scope 'head'; expected one of linear, all"),
        (lambda: tiny_subject("llama"), {"top_k": 260}, "top_k is 260, expected 1 to 259"),
        (lambda: tiny_subject("llama"), {"top_k": 0, "alpha": 0.0}, "top_k is 0, expected 1 to 259"),
        (lambda: tiny_subject("llama"), {"at_once": 0}, "at_once=0 is not allowed, expected at least 1, or null"),
        (lambda: tiny_subject("llama"), {"windows": 0}, "windows=0 is not allowed, expected at least 1"),
        (lambda: tiny_subject("llama"), {"match_weight": -1.0}, "match_weight is -1, expected a number of 0 or more"),
    ],
)
@pytest.mark.parametrize("scope", ["all", "linear"])
def test_what_it_cannot_do_is_refused_before_any_work(
    subject: Any, fields: dict[str, Any], words: str, scope: str
) -> None:
    given = subject()
    text = CALIBRATION if subject is other_vocabulary else replace(CALIBRATION, load_baseline=not_loaded)
    with unchanged(given.model), pytest.raises(Unsupported, match=words):
        technique(**{"scope": scope, **fields}).apply(given, text)
