"""What serving takes goes from the samples into the record, all of it borne out, and the record stays small enough."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from squeeze.audit.recompute import disagreements
from squeeze.records.record import Status
from squeeze.records.store import LARGEST_RECORD, encode
from squeeze.runner.assemble import assemble
from squeeze.runner.attempt import Attempt
from tests.runner.attempts import ROUNDS

LENGTHS = (32, 64, 128, 256, 512, 1000, 2000, 4096)
BATCHES = ("1", "2", "4", "8", "16")
NONE = [0.0, 0.0, 0.0]
WHY = "8,192 tokens, with prompts of up to 8,355: the model has 8192 positions"


@pytest.fixture
def serving(attempt: Attempt) -> Attempt:
    """The attempt as ``protocol=serving`` would leave it: 30 us a token of a prompt, the baseline's 20."""
    assert attempt.speed_baseline is not None
    for member, pace in ((attempt.built, 3e-5), (attempt.speed_baseline, 2e-5)):
        for number, values in enumerate(member.rounds):
            drift = 1.0123456 + 0.01 * number
            values["prompt_s"] = {str(tokens): [drift * pace * tokens] * 2 for tokens in LENGTHS}
            values["turns"] |= {f"prompt_s/{tokens}": [NONE] * 2 for tokens in LENGTHS}
            for batch in BATCHES:
                token = drift * 0.01 * (1 + 0.1 * int(batch))
                values["token_s"][batch] = (token * np.linspace(0.9, 1.1, 128)).tolist()
                values["ttft_s"][batch] = [0.1 * token * int(batch)] * 4
                values["turns"] |= {f"token_s/{batch}": [NONE] * 64, f"ttft_s/{batch}": [NONE] * 4}
            values["energy_j_per_token"] = dict.fromkeys(BATCHES, 0.123456 * drift)
            values["gaps"] = {"prompt_s/1": [[0.001]]}
            if number == 0:
                values |= {"context_peak_bytes": {"256": 805_120_000, "2048": 810_240_000}, "positions": 8192}
                values |= {"context_cache_bytes": 8_960_000, "context_tokens_held": 448, "prompts_left_out": WHY}
    return attempt


def test_the_curve_is_in_the_record_and_its_samples_bear_it_out(serving: Attempt) -> None:
    record, raw = assemble(serving)
    assert record.status is Status.OK, record.reason
    found = record.estimates
    assert found["ttft_ms_at_4096"].value == pytest.approx(1000 * 1.0323456 * 3e-5 * 4096, rel=1e-5)
    assert found["ttft_speedup_at_32"].value == pytest.approx(2 / 3, rel=1e-4)
    assert (found["ttft_ms_at_32"].n, found["ttft_speedup_at_32"].n) == (ROUNDS, ROUNDS)
    assert {f"itl_p{percent}_ms_b16" for percent in (50, 95, 99)} <= found.keys()
    assert (found["context_tokens_held"].value, found["context_bytes_per_token"].value) == (448, 20_000)
    assert record.realised["prompts_left_out"] == WHY
    assert record.realised["decode_gap"] == pytest.approx(ROUNDS * 0.001 / 64, abs=1e-6)
    arrays = dict(np.load(io.BytesIO(raw)))
    for name in ("prompt_s_t4096", "baseline_prompt_s_t32"):
        assert arrays[name].shape == (ROUNDS, 2)
    assert arrays["turns_prompt_s_t512"].shape == (ROUNDS, 2, 3)
    assert arrays["gaps_prompt_s_b1"].shape == (ROUNDS, 1, 1)
    assert list(disagreements(record, arrays)) == []


def test_a_changed_curve_is_found_and_an_older_record_may_lack_the_99th_percentile(serving: Attempt) -> None:
    record, raw = assemble(serving)
    arrays = dict(np.load(io.BytesIO(raw)))
    older = {name: each for name, each in record.estimates.items() if not name.startswith("itl_p99")}
    assert list(disagreements(replace(record, estimates=older), arrays)) == []
    for name in ("ttft_ms_at_512", "ttft_speedup_at_512", "itl_p99_ms_b8"):
        changed = replace(record.estimates[name], value=1.01 * record.estimates[name].value)
        [what] = disagreements(replace(record, estimates={**record.estimates, name: changed}), arrays)
        assert what.startswith(f"{name} is ")
    less = {name: each for name, each in record.estimates.items() if name != "ttft_ms_at_512"}
    [what] = disagreements(replace(record, estimates=less), arrays)
    assert what.startswith("ttft_ms_at_512 is missing")


def test_such_a_record_is_small(serving: Attempt) -> None:
    size = len(encode(assemble(serving)[0]))
    assert 8_000 < size < 0.95 * LARGEST_RECORD
