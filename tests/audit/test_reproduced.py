"""Which differences between two attempts are a drift; times are made up, with the noise of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from squeeze.audit import recompute
from squeeze.audit.reproduced import ABSOLUTE, DRIFTED, EXACT, NOT_JUDGED, WITHIN, verdicts
from squeeze.records.record import Estimate
from squeeze.records.rows import Side
from tests.fabricated import ENVIRONMENT, cell, record

CELL = cell("rtn", "quantization", {"bits": 4})


def side(seed: int, pace: float = 1.0, rounds: int = 5, minutes: float = 1.0, **changes: Any) -> Side:
    """An attempt that takes ``pace`` times as long, with 2 % noise between processes.

    minutes: by what the machine is slower for everyone while this session lasts.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {"token_nll": np.linspace(0, 5, 64, dtype=np.float32)}
    for name in ("token_s_b1", "token_s_b8", "ttft_s_b1", "ttft_s_b8"):
        mood, own, base = (np.exp(0.02 * rng.standard_normal((rounds, 1))) for _ in range(3))
        mood = minutes * mood
        values = np.exp(0.05 * rng.standard_normal((rounds, 8)))
        arrays |= {name: 0.02 * pace * mood * own * values, f"baseline_{name}": 0.04 * mood * base * values}
    estimates = {
        "perplexity": Estimate(18.35),
        "acc_sciq": Estimate(0.7),
        "decode_peak_bytes": Estimate(1e9, 0.99e9, 1.01e9, n=5),
        "build_seconds": Estimate(float(seed)),
    }
    return Side(record(CELL, estimates, **changes), arrays)


def words(before: Side, after: Side) -> dict[str, str]:
    return {verdict.field: verdict.word for verdict in verdicts(before, after)}


def test_another_process_is_no_drift_and_what_is_bookkeeping_is_no_field() -> None:
    found = words(side(1), side(2))
    assert found["perplexity"] == found["acc_sciq"] == found["samples.token_nll"] == EXACT
    assert found["decode_speedup"] == found["decode_peak_bytes"] == WITHIN
    assert not {"build_seconds", "samples.token_s_b1"} & found.keys()


def test_few_false_alarms_and_a_fifth_is_found() -> None:
    """Family-wise 5 % over the timed fields of a rerun; as squeeze promises of its speed-ups."""
    alarms = sum(DRIFTED in words(side(2 * n), side(2 * n + 1)).values() for n in range(300))
    assert alarms <= 0.08 * 300
    found = [words(side(2 * n), side(2 * n + 1, pace=1.2)) for n in range(50)]
    for name in ("ttft_speedup", "ttft_speedup_b8", "decode_speedup_b8", "decode_speedup"):
        assert sum(each[name] == DRIFTED for each in found) >= 0.95 * 50, name


def test_the_ratio_is_that_of_the_figure() -> None:
    """Twice the time is half the speed-up."""
    found = {verdict.field: verdict.why for verdict in verdicts(side(1), side(2, 2.0))}
    for name in ("ttft_speedup", "decode_speedup", "decode_speedup_b8"):
        assert float(found[name].split()[1]) == pytest.approx(0.5, rel=0.1)


def test_slower_minutes_are_no_drift() -> None:
    """The processes of one session share its minutes, so a Welch test of them finds any change of the machine."""
    found = {verdict.field: verdict for verdict in verdicts(side(1), side(2, minutes=1.3))}
    for name in ("ttft_ms", "ttft_ms_b8", "decode_tokens_per_s", "decode_tokens_per_s_b8"):
        assert (found[name].word, found[name].why) == (NOT_JUDGED, ABSOLUTE)
    for name in ("ttft_speedup", "decode_speedup"):
        assert found[name].word == WITHIN


OTHER_MACHINE = {**ENVIRONMENT, "hardware": {"cpu_model": "Another CPU"}}


def test_a_fingerprint_of_an_older_rule_does_not_stand_in_the_way() -> None:
    """An early record's fingerprint covered libraries that nothing here used; what today's covers is the same."""
    versions = {**ENVIRONMENT["software"]["versions"], "peft": "0.1"}
    early = {"fingerprint": "0" * 64, "environment": {**ENVIRONMENT, "software": {"versions": versions}}}
    found = {verdict.field: verdict for verdict in verdicts(side(1), side(2, pace=2.0, **early))}
    assert found["decode_speedup"].word == DRIFTED


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fingerprint": "0" * 64, "environment": OTHER_MACHINE}, "another machine or other software"),
        ({"fingerprint": "0" * 64, "environment": {}}, "another machine or other software"),
        ({"isolation": "shared"}, "measured in a shared process"),
        ({"rounds": 4}, "4 rounds, 5 needed"),
    ],
)
def test_what_is_not_judged_and_why(changes: dict[str, Any], why: str) -> None:
    found = {verdict.field: verdict for verdict in verdicts(side(1), side(2, pace=2.0, **changes))}
    assert (found["decode_speedup"].word, found["decode_speedup"].why) == (NOT_JUDGED, why)
    assert found["perplexity"].word == EXACT


def test_a_speed_up_against_another_baseline_is_not_judged() -> None:
    found = words(side(1), side(2, realised={"bytes_real": True, "speed_baseline": "float32"}))
    assert found["decode_speedup"] == NOT_JUDGED


def test_what_is_determined_may_not_move_by_a_bit() -> None:
    before, after = side(1), side(1)
    after.arrays["token_nll"][3] = -0.0 if after.arrays["token_nll"][3] == 0 else np.nextafter(1, 2)
    moved = {**before.record.estimates, "perplexity": Estimate(18.3501), "acc_piqa": Estimate(0.5)}
    changed = Side(record(CELL, moved, artifact_hash="b" * 64), after.arrays)
    found = words(before, changed)
    assert {name for name, word in found.items() if word == DRIFTED} == {
        *("artifact_hash", "perplexity", "acc_piqa", "samples.token_nll")
    }


def test_memory_drifts_where_spreads_lie_apart() -> None:
    before, after = side(1), side(2)
    for peak, word in ((1.03e9, WITHIN), (1.05e9, DRIFTED), (0.95e9, DRIFTED)):
        spread = {"decode_peak_bytes": Estimate(peak, peak * 0.995, peak * 1.005, n=5)}
        assert words(before, Side(record(CELL, spread), after.arrays))["decode_peak_bytes"] == word


def test_a_mebibyte_is_no_drift_of_memory() -> None:
    def small(peak: float) -> Side:
        return Side(record(CELL, {"decode_peak_bytes": Estimate(peak, peak, peak, n=5)}), {})

    assert words(small(1e6), small(2e6))["decode_peak_bytes"] == WITHIN
    assert words(small(1e6), small(2.1e6))["decode_peak_bytes"] == DRIFTED


def test_samples_of_another_type_are_not_the_same() -> None:
    before, after = side(1), side(1)
    wider = {**after.arrays, "token_nll": after.arrays["token_nll"].astype(np.float64)}
    assert words(before, Side(after.record, wider))["samples.token_nll"] == DRIFTED


def in_turns(seed: int, pace: float = 1.0) -> Side:
    """An attempt whose members took turns while the machine switched, from turn to turn, by a third."""
    rng = np.random.default_rng(seed)
    shared = np.exp(0.3 * rng.standard_normal((8, 16)).repeat(4, axis=1))
    arrays: dict[str, Any] = {}
    for prefix, factor in (("", pace), ("baseline_", 1.0)):
        noise = 0.01 * rng.standard_normal((8, 1)) + 0.005 * rng.standard_normal(shared.shape)
        arrays |= {
            f"{prefix}token_s_b1": 0.02 * factor * shared * np.exp(noise),
            f"{prefix}turns_token_s_b1": seed + np.zeros((8, 16, 3)),
            f"{prefix}interleaved": np.ones(8, dtype=bool),
        }
    realised = {"timing": "interleaved", "rounds_ended": ("half-width within 5%", "most rounds")[seed % 2]}
    return Side(record(CELL, {"decode_speedup": Estimate(1 / pace)}, realised=realised), arrays)


def test_speed_ups_of_turns_are_compared_by_turns() -> None:
    found = [words(in_turns(2 * n), in_turns(2 * n + 1, pace=1.03)) for n in range(50)]
    assert sum(each["decode_speedup"] == DRIFTED for each in found) >= 0.9 * 50
    alarms = [words(in_turns(2 * n), in_turns(2 * n + 1)) for n in range(50)]
    assert sum(each["decode_speedup"] == DRIFTED for each in alarms) <= 6


def test_the_ratio_of_turns_is_that_of_the_record() -> None:
    """Where half of one member's turns are disturbed, its process's median is another figure."""
    before, after = in_turns(0), in_turns(1)
    after.arrays["token_s_b1"][:, ::8] *= 3.0
    after.arrays["token_s_b1"][:, 1::8] *= 3.0
    speed_ups = [recompute.estimates(side.record, side.arrays)["decode_speedup"].value for side in (before, after)]
    [found] = [verdict for verdict in verdicts(before, after) if verdict.field == "decode_speedup"]
    assert found.why.startswith(f"x {speed_ups[1] / speed_ups[0]:.3f} ")


def test_what_the_moment_decided_is_no_drift() -> None:
    """When turns began, how many rounds it took: another session's are others."""
    found = words(in_turns(4), in_turns(5))
    assert DRIFTED not in found.values()
    assert not {name for name in found if "turns" in name or "interleaved" in name or "rounds_ended" in name}


def curved(found: Side) -> Side:
    """The same attempt; its prompts of 512 tokens took as long as those of the protocol's length."""
    times = {f"{of}prompt_s_t512": found.arrays[f"{of}ttft_s_b1"] for of in ("", "baseline_")}
    return Side(found.record, {**found.arrays, **times})


def test_first_tokens_are_judged_at_each_length_of_the_prompt() -> None:
    again = {verdict.field: verdict for verdict in verdicts(curved(side(1)), curved(side(2)))}
    assert (again["ttft_ms_at_512"].word, again["ttft_ms_at_512"].why) == (NOT_JUDGED, ABSOLUTE)
    assert again["ttft_speedup_at_512"].word == WITHIN
    slower = words(curved(side(1)), curved(side(2, pace=1.5)))
    assert slower["ttft_speedup_at_512"] == DRIFTED
    before, after = curved(side(1)), curved(side(2))
    for each in (before, after):
        del each.arrays["baseline_prompt_s_t512"]
    assert "ttft_speedup_at_512" not in words(before, after)
    assert words(before, after)["ttft_ms_at_512"] == NOT_JUDGED
