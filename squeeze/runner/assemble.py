"""Turn an attempt into its record and the raw samples that are kept beside it. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from squeeze.core import environment
from squeeze.probes import samples
from squeeze.records import decoded, drafting, encoded, items, serving
from squeeze.records import estimates as figures
from squeeze.records.fidelity import GENERATED, fidelity, pooled
from squeeze.records.plausibility import implausible
from squeeze.records.record import IMPLAUSIBLE, Estimate, Record, Status
from squeeze.records.sanitize import public
from squeeze.records.statistics import fewest_items
from squeeze.records.turns import DRAFTED, TIMINGS, array_of, how_timed
from squeeze.runner.alike import unlike
from squeeze.runner.attempt import Attempt, now
from squeeze.runner.flagging import flags
from squeeze.runner.jobs.outcome import Failure
from squeeze.runner.results import Measured, Process
from squeeze.runtimes import environments

REALISED = (
    *("bytes_real", "memory_real", "compute_real", "batch_dependent", "sparsity", "levels", "compressed_share"),
    *("scored_as", "scored_difference", "decode_difference", "running_bits", "mismatches", "gomp_spincount"),
    *("causal_difference", "layers_kept", "channels_kept", "heads_kept", "hidden_kept", "input_sparsity"),
    *("greedy_agreement", "greedy_within_rounding", "parity_difference", "parity_kl", "inspected", "prompts_left_out"),
)
NOT_AVAILABLE = "not available"
FLOOR = "floor_"  # arrays of a baseline that say how far it is from itself; in its own record they stand once, too

Values = dict[str, Any]
Arrays = dict[str, npt.NDArray[Any]]


def assemble(attempt: Attempt, failure: Failure | None = None) -> tuple[Record, bytes]:
    """Return the record of an attempt, and the .npz file of its raw samples (empty for one that failed).

    Samples that do not fit together, or come from processes that were set up otherwise than the baseline's, make an
    invalid record, not an error. Raises FileNotFoundError where samples are gone.
    """
    if failure is None and (names := _set_up_otherwise(attempt)):
        reason = f"its processes began otherwise than the baseline's: {', '.join(names)}"
        failure = Failure(Status.INVALID, public(reason)[:300], "latency")
    if failure is None:
        try:
            return _measured(attempt)
        except FileNotFoundError:  # samples that were there: somebody has removed them, which is no verdict
            raise
        except (ValueError, KeyError, TypeError, OSError, BadZipFile) as error:
            reason = public(f"samples do not fit together: {type(error).__name__}: {error}")
            failure = Failure(Status.INVALID, reason[:300], "assemble")
    assert failure.status is not None  # no verdict, no record
    record = _frame(attempt, failure.status)
    return replace(record, reason=failure.reason, stage=failure.stage, log_tail=failure.log_tail), b""


def _measured(attempt: Attempt) -> tuple[Record, bytes]:
    candidate, baseline = attempt.built, attempt.speed_baseline
    assert baseline is not None
    assert attempt.quality_baseline is not None
    rounds, baseline_rounds = candidate.rounds, baseline.rounds
    scored, arrays = _quality(candidate)
    of_baseline, baseline_arrays = _quality(attempt.quality_baseline)
    if candidate.quality == attempt.quality_baseline.quality:  # it is the baseline: nothing is nearer to it
        scored = {**scored, "kl_divergence": 0.0, "top1_agreement": 1.0}
    weighed = rounds[0]
    estimates = {
        **figures.sizes(weighed),
        **figures.memory(rounds),
        **figures.memory([scored], ("quality",)),
        **figures.loading(rounds),
        **figures.speeds(rounds, baseline_rounds),
        **figures.inter_token(rounds),
        **figures.first_steps(rounds),
        **figures.energy(rounds),
        **drafting.figures(rounds),
        **serving.context(weighed),
        **figures.scores(scored),
        **fidelity(arrays, baseline_arrays),
        **_building(attempt),
    }
    if attempt.machine is not None:
        estimates |= figures.utilisation(rounds, attempt.machine)
    diverged = str(scored["reason"]) if scored.get("diverged") else ""
    if not diverged:
        estimates |= figures.changes(arrays, baseline_arrays, attempt.cell.protocol["seed"])
        estimates |= pooled(arrays, baseline_arrays, fewest_items(attempt.cell.is_classifier))
    found = {name: values[name] for values in (scored, weighed) for name in REALISED if values.get(name) is not None}
    found |= _decoded(attempt, scored, of_baseline) | _encoded(attempt, scored)
    record = replace(
        _frame(attempt, Status.DIVERGED if diverged else Status.OK),
        reason=diverged,
        stage="quality" if diverged else "",
        estimates=figures.known(estimates),
        claimed=candidate.artifact.info["claims"],
        realised={
            **found,
            "dtype": candidate.artifact.dtype,
            "speed_baseline": baseline.cell.model["dtype"],
            **({} if attempt.cell.is_eager else {"baseline_runtime": baseline.cell.runtime["name"]}),
            "timing": how_timed(rounds, baseline_rounds),
            **({"rounds_ended": attempt.rounds_ended} if attempt.rounds_ended else {}),
            "energy": "counted" if "energy_j_per_token" in estimates else NOT_AVAILABLE,
            **_floor(of_baseline),
            **candidate.artifact.step_by_step,
        },
        block_nll=() if diverged else _block_nll(arrays),
        item_correct=items.kept(arrays) if attempt.cell.is_classifier and not diverged else "",
        flags=tuple(flags(attempt, {**scored, **weighed, **found})),
    )
    if implausible(record):
        record = replace(record, flags=(*record.flags, IMPLAUSIBLE))
    return record, _packed(_raw(rounds, baseline_rounds, arrays, baseline_arrays))


def _set_up_otherwise(attempt: Attempt) -> list[str]:
    sides = (attempt.candidate, attempt.speed_baseline)
    elsewhere = environments.of(attempt.cell.runtime) is not None
    return unlike(*(side.rounds if side else () for side in sides), elsewhere=elsewhere)


def _frame(attempt: Attempt, status: Status) -> Record:
    """Return what every record says, whatever became of its attempt; ``stages`` add up to the cell's wall time."""
    artifact = attempt.candidate.artifact if attempt.candidate else None
    seconds = {
        "build": artifact.seconds if artifact else 0.0,
        **{name: sum(process.work for process in each) for name, each in _processes(attempt).items() if each},
        "overhead": sum(_overheads(attempt)),
        "baseline": attempt.baseline_seconds,
    }
    machine = {"machine": attempt.machine.to_json()} if attempt.machine else {}
    return Record(
        cell=attempt.cell.to_json(),
        **attempt.row._asdict(),
        status=status,
        attempt=attempt.id,
        started=attempt.started,
        finished=now(),
        artifact_hash=artifact.hash if artifact else None,
        environment={**attempt.place, "state_after": environment.state(), **machine},
        stages={name: round(value, 3) for name, value in seconds.items()},
    )


def _processes(attempt: Attempt) -> dict[str, list[Process]]:
    """Return the candidate's measuring processes by stage."""
    if (candidate := attempt.candidate) is None:
        return {}
    scored = candidate.scoring.process if candidate.scoring else None
    return {"quality": [scored] if scored else [], "latency": list(candidate.timings)}


def _overheads(attempt: Attempt) -> list[float]:
    """Return the seconds of each of the candidate's measuring processes that were no model work."""
    each = [process.overhead for processes in _processes(attempt).values() for process in processes]
    return [overhead for overhead in each if overhead is not None]


def _building(attempt: Attempt) -> dict[str, Estimate]:
    info, seconds = attempt.built.artifact.info, _overheads(attempt)
    overheads = {"process_overhead_seconds": Estimate(float(np.median(seconds)), n=len(seconds))} if seconds else {}
    return {
        "build_seconds": Estimate(info["seconds"]),
        "build_seconds_marginal": Estimate(info["seconds_marginal"]),
        "build_peak_bytes": Estimate(info["peak_bytes"]),
        **figures.training(info.get("training", ())),
        **overheads,
    }


def _quality(member: Measured) -> tuple[Values, Arrays]:
    """Return the scalars and the arrays of a member's quality."""
    values = samples.read(member.quality, arrays=False).values
    with (member.quality / samples.ARRAYS_NAME).open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return values, dict(stored)


def _block_nll(arrays: Arrays) -> tuple[float, ...]:
    """Return what ranking needs of the token losses; nothing for a model that predicts no tokens."""
    if "token_nll" not in arrays:
        return ()
    return figures.block_losses(arrays["token_nll"])


def _decoded(attempt: Attempt, scored: Values, of_baseline: Values) -> Values:
    """Return how far the tokens that were timed are from those that the scored model chooses, and how far they may be.

    Nothing of what decodes none.
    """
    rounds = attempt.built.rounds
    gap = decoded.worst(rounds)
    if gap is None:
        return {}
    integers = rounds[0].get("arithmetic") == "int8"
    coarse = bool(scored.get("batch_dependent") or rounds[0].get("coarse") or integers)
    worse = scored["perplexity"] / of_baseline["perplexity"] if "perplexity" in scored else 1.0
    return {"decode_gap": round(gap, 6), "decode_gap_allowed": round(decoded.allowed(coarse, worse), 6)}


def _encoded(attempt: Attempt, scored: Values) -> Values:
    """Return how far the logits that were timed are from the scored ones, and how far they may be; of classifiers."""
    gap = encoded.gap(attempt.built.rounds)
    if gap is None:
        return {}
    allowed = encoded.allowed(bool(scored.get("batch_dependent")))
    return {"encode_gap": round(gap, 6), "encode_gap_allowed": round(allowed, 6)}


def _raw(rounds: Sequence[Values], baseline: Sequence[Values], arrays: Arrays, baseline_arrays: Arrays) -> Arrays:
    """Return all samples by name: timings (rounds, n) in seconds, quality (tokens,) or (items,), the baseline's too.

    interleaved: (rounds,); turns: (rounds, turns, 3), what `squeeze.probes.turns.pressure` gave as each turn began.
    calls: (rounds, n), of tokens that came several at a time, whether a call began with each; drafting: what
    `squeeze.records.drafting` keeps. gaps: (rounds, rows, tokens), of the candidate alone, what
    `squeeze.probes.teacher_forced` gave.
    """
    raw = {name: _compact(array) for name, array in arrays.items() if not name.startswith(FLOOR)}
    raw |= {f"baseline_{name}": _compact(array) for name, array in baseline_arrays.items() if _is_kept(name)}
    for prefix, timings in (("", rounds), ("baseline_", baseline)):
        for kind in TIMINGS:
            for point in timings[0].get(kind, {}):
                name = array_of(kind, point)
                raw[f"{prefix}{name}"] = np.array([values[kind][point] for values in timings])
                raw[f"{prefix}turns_{name}"] = np.array([values["turns"][f"{kind}/{point}"] for values in timings])
        for batch in timings[0].get(DRAFTED, {}):
            raw[f"{prefix}calls_b{batch}"] = np.array([values[DRAFTED][batch] for values in timings], dtype=bool)
        raw[f"{prefix}interleaved"] = np.array([bool(values["interleaved"]) for values in timings])
    raw |= drafting.arrays(rounds)
    for step in rounds[0].get("gaps", {}):
        name = "gaps_{}_b{}".format(*step.split("/"))
        raw[name] = np.array([values["gaps"][step] for values in rounds], dtype=np.float32)
    return raw


def _is_kept(name: str) -> bool:
    """Tell whether a baseline's array is kept in other rows' samples: what theirs are paired with, and its floor."""
    return name in (*figures.TEXTS, *GENERATED) or name.endswith("_correct") or name.startswith(FLOOR)


def _floor(of_baseline: Values) -> Values:
    """Return against what the noise floor was taken, in words, where there is one."""
    how = of_baseline.get("floor_rounding")
    return {} if how is None else {"noise_floor": how}


def _compact(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _packed(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
