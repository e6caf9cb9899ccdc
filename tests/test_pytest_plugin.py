"""A measuring process does its job's stage, no other, and leaves its samples whatever happens to a bench."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.core import paths
from squeeze.probes import samples
from squeeze.request.cell import Cell
from squeeze.runner.jobs.job import Job
from squeeze.sources import corpora
from tests.planted import place
from tests.tiny import KINDS, tiny_subject

pytestmark = pytest.mark.timed

pytest_plugins = ["pytester"]

PROTOCOL = {
    "name": "tiny",
    "seed": 0,
    "latency": {
        "prompt_tokens": 8,
        "decode_tokens": 6,
        "prefill_repeats": 3,
        "batch_sizes": [1, 2],
        "warmup_rounds": 2,
    },
    "perplexity": {"corpus": "wikipedia_eval"},
}
CURVE = {**PROTOCOL, "ttft_curve": {"prompt_tokens": [16, 40, 4096], "repeats": 2}}
RUNTIME = {"name": "eager", "device": "cpu", "threads": 1, "_target_": "eager.Eager"}
OWN_BENCHES = """
import pytest

def test_sound(job, samples):
    samples.put("sound", job.round)

def test_broken(job, samples):
    raise RuntimeError("not today")

@pytest.mark.once
def test_once(job, samples):
    samples.put("once", True)

@pytest.mark.quality
def test_quality(job, samples):
    samples.put("perplexity", 13.0)

def test_each(job, samples, batch):
    samples.put_entry("batches", str(batch), batch)

def test_elsewhere():
    pass
"""


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_job(tmp_path: Path) -> Any:
    """Build an artifact of a tiny model and write a job file for it."""

    def make(name: str = "llama", protocol: Any = PROTOCOL, **fields: Any) -> Path:
        subject = tiny_subject(name)
        artifact.save(subject, tmp_path / "artifact")
        kind = KINDS.get(name, "causal_lm")
        source = f"random:{name.removesuffix('_classifier')}"
        model = {"name": f"tiny_{name}", "source": source, "seed": 0, "kind": kind, "dtype": "float32"}
        cell = Cell(model, {"name": "none", "family": "baseline", "steps": []}, {}, RUNTIME, protocol)
        job = Job(cell, tmp_path / "artifact", **{"stage": "latency", "out": tmp_path / "out", **fields})
        path = tmp_path / "job.json"
        path.write_text(json.dumps(job.to_json()))
        return path

    return make


@pytest.fixture
def own_benches(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest('pytest_plugins = ["squeeze.pytest_plugin"]')
    pytester.makepyfile(test_own=OWN_BENCHES)
    return pytester


def real_benches(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, job: Path) -> pytest.RunResult:
    """Run benches/ in this process, on text that needs no fetching."""
    monkeypatch.setattr(corpora, "tokens", lambda _name, _tokenizer, count: torch.arange(count) % 251)
    before = set(sys.modules)
    try:
        return pytester.runpytest_inprocess(paths.benches(), "-p", "no:cacheprovider", "--cell", job)
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("benches"):
                del sys.modules[name]


def test_the_latency_stage_times_every_token_and_weighs_the_artifact(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, make_job: Any, tmp_path: Path
) -> None:
    result = real_benches(pytester, monkeypatch, make_job())
    assert result.ret == 0, result.stdout.str()
    values = samples.read(tmp_path / "out").values
    for batch in ("1", "2"):
        assert [len(values["ttft_s"][batch]), len(values["token_s"][batch])] == [3, 6]
        assert [len(row) for row in values["generated"][batch]] == [7] * int(batch)
    assert all(seconds > 0 for batch in ("1", "2") for seconds in values["ttft_s"][batch] + values["token_s"][batch])
    assert values["steady"].keys() == {"ttft_s/1", "ttft_s/2", "token_s/1", "token_s/2"}
    assert values["unsteady"] != all(values["steady"].values())
    assert values["load_peak_bytes"] > 0
    assert values["decode_peak_bytes"] > 0
    assert values["effective_bits"] > 32
    assert values["block_effective_bits"] == 32
    assert values["mismatches"] == []
    assert values["decode_difference"] < 1e-4
    assert values["running_bits"] == 32
    assert values["positions"] == 2048
    assert values["context_peak_bytes"].keys() == {"256", "2048"}
    assert min(values["context_peak_bytes"].values()) > 0
    assert values["context_cache_bytes"] == 2048 * 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, channels, bytes
    assert not {"context_tokens_held", "prompt_s", "prompts_left_out"} & values.keys()
    assert values["failures"] == {}
    assert values["stages"].keys() == {
        "start",
        "imports",
        "collect",
        "load",
        "warmup",
        "timed",
        "memory",
        "context",
        "recount",
        "decoding",
        "teacher_forced",
    }
    assert values["firsts"]["2"] != values["firsts"]["1"]
    assert [len(values["gaps"][f"token_s/{batch}"]) for batch in (1, 2)] == [1, 2]  # rows, of prompt and tokens
    assert [len(row) for row in values["gaps"]["token_s/2"]] == [7, 7]
    assert max(gap for rows in values["gaps"].values() for row in rows for gap in row) < 1e-3
    assert values["processors"].keys() == values["turns"].keys()
    assert values["state"]["threads to compute with"] == "1"


def test_a_curve_times_first_tokens_at_each_length_that_the_model_takes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, make_job: Any, tmp_path: Path
) -> None:
    result = real_benches(pytester, monkeypatch, make_job(protocol=CURVE, round=1))
    assert result.ret == 0, result.stdout.str()
    values = samples.read(tmp_path / "out").values
    assert {tokens: len(times) for tokens, times in values["prompt_s"].items()} == {"16": 2, "40": 2}
    assert {tokens: len(firsts) for tokens, firsts in values["prompt_firsts"].items()} == {"16": 2, "40": 2}
    assert min(seconds for times in values["prompt_s"].values() for seconds in times) > 0
    assert values["prompts_left_out"].startswith(
        "4,096 tokens, with prompts of up to 4,177: the model has 2048 positions"
    )
    assert [len(values["turns"][f"prompt_s/{tokens}"]) for tokens in (16, 40)] == [2, 2]
    assert values["processors"].keys() == values["turns"].keys()
    [gaps] = values["gaps"]["prompt_s/1"]
    assert len(gaps) == 2
    assert max(gaps) < 1e-3, "the first tokens are those that the model scores"
    assert values["failures"] == {}


def test_later_rounds_leave_out_what_no_round_changes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, make_job: Any, tmp_path: Path
) -> None:
    assert real_benches(pytester, monkeypatch, make_job(round=1)).ret == 0
    values = samples.read(tmp_path / "out").values
    assert "ttft_s" in values
    assert "effective_bits" not in values
    assert "context_peak_bytes" not in values


def test_an_encoder_is_timed_too(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, make_job: Any, tmp_path: Path
) -> None:
    result = real_benches(pytester, monkeypatch, make_job("bert"))
    result.assert_outcomes(
        passed=5
    )  # two batch sizes, memory, size, what it left alone; prefill and decode are of another kind
    values = samples.read(tmp_path / "out").values
    assert len(values["ttft_s"]["2"]) == 3
    assert "token_s" not in values
    assert values["prefill_peak_bytes"] > 0


def test_an_encoder_has_no_quality_but_its_samples_say_so(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, make_job: Any, tmp_path: Path
) -> None:
    real_benches(pytester, monkeypatch, make_job("bert", stage="quality")).assert_outcomes(passed=1)
    assert "perplexity" not in samples.read(tmp_path / "out").values


def test_a_model_that_reads_pictures_is_timed_with_one(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, make_job: Any, tmp_path: Path
) -> None:
    result = real_benches(pytester, monkeypatch, make_job("llava"))
    result.assert_outcomes(passed=7)  # prefill and decode of two batch sizes, memory, size, what it left alone
    values = samples.read(tmp_path / "out").values
    assert [len(values["ttft_s"]["2"]), len(values["token_s"]["2"])] == [3, 6]
    assert values["visual_tokens_by_block"] == [36] * 4
    assert values["cache_bytes_per_token"] == 4 * 2 * 2 * 16 * 4  # blocks; keys, values; heads, channels, bytes
    assert values["mismatches"] == []
    assert "gaps" not in values


def test_its_quality_is_what_it_says_of_one(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, make_job: Any, tmp_path: Path
) -> None:
    monkeypatch.setitem(PROTOCOL, "generations", {"prompts": 4, "tokens": 5})
    real_benches(pytester, monkeypatch, make_job("llava", stage="quality")).assert_outcomes(passed=1)
    found = samples.read(tmp_path / "out")
    assert (found.arrays["generated"].shape, found.arrays["generated_alone"].shape) == ((4, 5), (1, 5))
    assert "perplexity" not in found.values


def test_a_classifier_is_timed_and_what_it_answered_is_read_once_more(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, make_job: Any, tmp_path: Path
) -> None:
    result = real_benches(pytester, monkeypatch, make_job("bert_classifier"))
    result.assert_outcomes(passed=7)  # as an encoder, and two batch sizes once more
    values = samples.read(tmp_path / "out").values
    assert not {"ttft_s", "token_s"} & values.keys()
    assert [len(values["encode_s"][batch]) for batch in ("1", "2")] == [3, 3]
    assert np.shape(values["answers"]["2"]) == (3, 2, 2)
    for apart, size in values["encode_apart"].values():
        assert 0 <= apart < 1e-6 * size
    assert values["turns"].keys() == {"encode_s/1", "encode_s/2"}


def test_a_failed_bench_is_named_and_the_others_are_kept(
    own_benches: pytest.Pytester, make_job: Any, tmp_path: Path
) -> None:
    result = own_benches.runpytest_inprocess(own_benches.path, "--cell", make_job())
    result.assert_outcomes(passed=5, failed=1)
    values = samples.read(tmp_path / "out").values
    assert values["sound"] == 0
    assert values["once"] is True
    assert values["batches"] == {"1": 1, "2": 2}
    assert values["failures"] == {"test_broken[tiny_llama-none-float32]": "RuntimeError: not today"}
    assert "perplexity" not in values


def test_the_code_of_a_runtime_is_watched_from_before_the_artifact_is_loaded_by_it(
    own_benches: pytest.Pytester, make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is imported for that: what is not there is not watched."""
    for module in [name for name in sys.modules if name.startswith("squeeze.runtimes.lean")]:
        monkeypatch.delitem(sys.modules, module)
    own_benches.makepyfile(
        test_own='def test_watched(before, samples): samples.put("watched", [*map(str, before.functions)])'
    )
    job = json.loads(make_job().read_text())
    job["cell"]["runtime"]["_target_"] = "lean.Lean"
    (tmp_path / "job.json").write_text(json.dumps(job))
    own_benches.runpytest_inprocess(own_benches.path, "--cell", tmp_path / "job.json").assert_outcomes(passed=1)
    watched = samples.read(tmp_path / "out").values["watched"]
    assert {"squeeze.runtimes.lean_block.Block.step", "code of squeeze.runtimes.lean.LeanEngine.begin"} <= {*watched}


def test_the_quality_stage_runs_its_benches_only(own_benches: pytest.Pytester, make_job: Any, tmp_path: Path) -> None:
    result = own_benches.runpytest_inprocess(own_benches.path, "--cell", make_job(stage="quality"))
    result.assert_outcomes(passed=2)
    assert samples.read(tmp_path / "out").values["perplexity"] == 13.0


def test_an_artifact_that_cannot_be_read_leaves_samples_that_say_so(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, make_job: Any, tmp_path: Path
) -> None:
    job = make_job()
    (tmp_path / "artifact" / "artifact.json").unlink()
    assert real_benches(pytester, monkeypatch, job).ret == 1
    failures = samples.read(tmp_path / "out").values["failures"]
    assert all("artifact.json" in text for text in failures.values())


def test_a_torn_job_file_is_one_line(own_benches: pytest.Pytester, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{")
    result = own_benches.runpytest_inprocess(own_benches.path, "--cell", tmp_path / "job.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "job.json is not a job file" in result.stderr.str()
    assert "Traceback" not in result.stderr.str() + result.stdout.str()


def test_cells_are_parameters_with_readable_names(own_benches: pytest.Pytester) -> None:
    selection = "model=tiny_llama technique=none dtype=float32 protocol=smoke"
    result = own_benches.runpytest_inprocess(own_benches.path, "--collect-only", "-q", "--squeeze", selection)
    result.stdout.fnmatch_lines(["*test_sound?tiny_llama-none-float32?", "*test_each?tiny_llama-none-float32?"])


def test_choices_of_the_users_own_are_measured_too(own_benches: pytest.Pytester, tmp_path: Path) -> None:
    smoke = (paths.conf() / "protocol" / "smoke.yaml").read_text()
    place(tmp_path / "conf", "protocol", "mine", smoke.replace("name: smoke", "name: mine"))
    place(tmp_path / "conf", "model", "my_llama", "source: random:llama\nseed: 7\nkind: causal_lm\ndtype: ${dtype}\n")
    arguments = ["--squeeze", "model=my_llama technique=none protocol=mine", "--config-dir", tmp_path / "conf"]
    result = own_benches.runpytest_inprocess(own_benches.path, "--collect-only", "-q", *arguments)
    result.stdout.fnmatch_lines(["*test_sound?my_llama-none-bfloat16?"])


def test_a_misspelt_selection_is_one_line(own_benches: pytest.Pytester) -> None:
    result = own_benches.runpytest_inprocess(own_benches.path, "--squeeze", "model=tiny_lama")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "tiny_llama" in result.stderr.str()
    assert "Traceback" not in result.stderr.str() + result.stdout.str()
