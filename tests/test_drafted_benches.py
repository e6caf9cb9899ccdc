"""A measuring process of a model that drafts: timed by tokens, held against plain decoding, by kind of prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.core.errors import IntegrityError
from squeeze.models.subject import Subject
from squeeze.probes import samples
from squeeze.request.cell import Cell
from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.outcome import status_of
from squeeze.runtimes import speculative
from squeeze.sources import prompts
from squeeze.sources.prompts import KINDS
from tests.drafts import drafted_by, lively, looked_up
from tests.test_pytest_plugin import PROTOCOL, RUNTIME, _same_threads_afterwards, real_benches  # noqa: F401 - a fixture

pytestmark = pytest.mark.timed

pytest_plugins = ["pytester"]

DECODED = PROTOCOL["latency"]["decode_tokens"]
MODEL = {"name": "tiny_llama", "source": "random:llama", "seed": 0, "kind": "causal_lm", "dtype": "float32"}
STEP = {"_target_": "prompt_lookup.PromptLookup", "drafted_tokens": 4, "longest_match": 2}


def job(subject: Subject, folder: Path, **changes: Any) -> Path:
    """The job file of such a model's latency stage, beside its uncompressed one."""
    artifact.save(subject, folder / "artifact")
    artifact.save(lively(), folder / "baseline")
    technique = {"name": "made_up", "family": "inference", "steps": [STEP]}
    cell = Cell(MODEL, technique, {}, {**RUNTIME, **changes.pop("runtime", {})}, PROTOCOL)
    fields = {"stage": "latency", "out": folder / "out", "baseline_artifact": folder / "baseline", **changes}
    path = folder / "job.json"
    path.write_text(json.dumps(Job(cell, folder / "artifact", **fields).to_json()))
    return path


@pytest.fixture(autouse=True)
def _code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "code", lambda: "".join(f"class Test{n}:\n    pass\n" for n in range(2000)))


@pytest.mark.parametrize("way", ["itself", "lookup"])
def test_tokens_are_timed_and_guesses_are_counted(
    way: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    subject = drafted_by(lively(), lively()) if way == "itself" else looked_up(lively())
    result = real_benches(pytester, monkeypatch, job(subject, tmp_path))
    assert result.ret == 0, result.stdout.str()
    values = samples.read(tmp_path / "out").values
    assert values["failures"] == {}
    for batch in ("1", "2"):
        assert len(values["token_s"][batch]) == len(values["calls"][batch]) == DECODED
        assert [len(row) for row in values["generated"][batch]] == [DECODED + 1] * int(batch)
        assert sum(values["calls"][batch]) == len(values["steps"][batch])
        assert sum(accepted + 1 for _, accepted in values["steps"][batch]) >= DECODED
        assert len(values["turns"][f"token_s/{batch}"]) == -(-DECODED // 2), (
            "as many as of a model that guesses nothing"
        )
    assert values["drafting"].keys() == set(KINDS)
    for found in values["drafting"].values():
        assert found["plain_s"] > 0 < found["drafted_s"]
        assert found["accepted"] + found["steps"] == 47
        assert 0 <= found["accepted"] <= found["drafted"] <= 4 * found["steps"]
    if way == "itself":
        assert values["steps"]["1"] == [[4, 4], [4, 4]], "six tokens by two calls of five"
        assert all(found["accepted"] == found["drafted"] for found in values["drafting"].values())
    assert values["mismatches"] == [], "its draft's weights are no hidden ones"
    assert ("draft_bytes" in values) is (way == "itself")
    assert values["memory_real"] is False
    plain = values["cache_bytes_per_token"]
    assert plain == (2 if way == "itself" else 1) * 2 * 2 * 2 * 16 * 4  # models; layers; keys, values; heads, channels
    assert max(gap for rows in values["gaps"].values() for row in rows for gap in row) < 1e-3


def test_one_that_accepts_a_wrong_guess_is_invalid(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The planted bug: what was timed and what kinds of prompts lead to are not what the model says."""
    monkeypatch.setattr(speculative, "accepted", lambda drafted, _: drafted.shape[1])
    subject = drafted_by(lively(), lively(seed=1))
    result = real_benches(pytester, monkeypatch, job(subject, tmp_path))
    assert result.ret != 0
    failures = samples.read(tmp_path / "out").values["failures"]
    said = {name.partition("[")[0]: words for name, words in failures.items()}
    assert said["test_what_was_timed_is_plain_decoding"].startswith("IntegrityError: guessing changes the text: token ")
    assert "behind prompt 1 of kind continuation is" in said["test_kinds_of_prompts"]


def test_a_wrong_guess_is_a_verdict_of_invalid() -> None:
    assert status_of(IntegrityError("guessing changes the text")) == "invalid"


def test_a_runtime_that_would_leave_the_draft_out_is_unsupported(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = {"name": "lean", "_target_": "lean.Lean"}
    result = real_benches(pytester, monkeypatch, job(looked_up(lively()), tmp_path, runtime=runtime))
    assert result.ret != 0
    failures = samples.read(tmp_path / "out").values["failures"]
    said = "Unsupported: runtime=lean would leave the artifact's draft out; use runtime=eager"
    assert said in set(failures.values())


@torch.inference_mode()
def test_models_of_these_tests_say_more_than_one_token() -> None:
    text = torch.arange(128)[None] % 251
    assert len(lively().model(text).logits[0].argmax(-1).unique()) > 10
