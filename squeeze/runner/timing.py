"""Time models against each other: one process of each member in each round, side by side where that can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import psutil

from squeeze.artifacts import keys
from squeeze.records import estimates
from squeeze.records.record import Estimate
from squeeze.records.statistics import ALPHA
from squeeze.runner import rounds
from squeeze.runner.jobs.executor import Executor
from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.outcome import Failure, StageError
from squeeze.runner.results import Measured, Process

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a weight
FURTHER = 1 << 30  # bytes that a process takes beside its weights, at most
PILOT_ROUNDS = 8  # of the two dtypes of a baseline, at most
OBVIOUS = 1.25  # times as fast, in each of two rounds: ten times the noise of a round, no test is needed


def time_rounds(shop: Executor, members: Sequence[Measured]) -> Iterator[tuple[int, Process | Failure | str]]:
    """Time one process of each member in each round, in balanced order; the first member is the baseline.

    The processes of a round are alive at once and work in turns where they may (`interleaves`); else one runs after
    the other. Yields, with the member's position in ``members``, what each process left; or if that was its end, why
    (then it is left out of further rounds); and for a candidate that needs no further rounds the reason, a string.
    Raises StageError when the baseline fails: nothing has anything to be compared with any more.
    """
    protocol = members[0].cell.protocol
    done: dict[int, list[Process]] = {position: [] for position in range(len(members))}
    alive = list(done)
    for number in count():
        for position, result in _round(shop, members, rounds.order(alive, number), number):
            if isinstance(result, StageError):
                if position == 0:
                    raise result
                alive.remove(position)
                yield position, result.failure
            else:
                done[position].append(result)
                yield position, result
        for position in [position for position in alive if position and number % 2]:
            if why := rounds.settled(number + 1, protocol, speed_up(done[position], done[0])):
                alive.remove(position)
                yield position, why
        if alive == [0]:
            return


def speed_up(own: Sequence[Process], baseline: Sequence[Process]) -> Estimate:
    """Return how many times as fast a member steps as the baseline, at its smallest batch size.

    A step is a decoded token, or the forward of an encoder or a classifier.
    """
    found = estimates.speeds([one.values for one in own], [one.values for one in baseline])
    return next(found[name] for name in found if name.startswith(_step(own[0])))


def faster(shop: Executor, members: Sequence[Measured]) -> tuple[Measured, bool]:
    """Return which of two members is faster, and whether that is shown; one that fails is the slower one.

    Two rounds are enough where it is obvious; else pairs are added until a test shows the difference, up to eight.
    Raises StageError when both fail, and when one does in a way that says nothing of it.
    """
    timings: list[list[Process]] = [[] for _ in members]
    for number in range(PILOT_ROUNDS):
        failures: dict[int, StageError] = {}
        # Counted from 1: in round 0 figures are taken that no round changes.
        for position, result in _round(shop, members, [0, 1][:: -1 if number % 2 else 1], number + 1):
            if isinstance(result, StageError):
                failures[position] = result
            else:
                timings[position].append(result)
        for failed in failures.values():
            if failed.failure.status is None or len(failures) == len(members):
                raise failed
        if failures:
            return members[1 - next(iter(failures))], True
        if number % 2:
            ratio = speed_up(*timings)
            first = ratio.value > 1
            if _is_obvious(*timings) or (ratio.p_value is not None and ratio.p_value < ALPHA):
                return members[0 if first else 1], True
    return members[0 if first else 1], False


def _is_obvious(own: Sequence[Process], baseline: Sequence[Process]) -> bool:
    """Tell whether in every round one was faster, and the same one, by far."""
    ratios = [speed_up([one], [other]).value for one, other in zip(own, baseline, strict=True)]
    return min(ratios) > OBVIOUS or max(ratios) < 1 / OBVIOUS


def interleaves(members: Sequence[Measured]) -> bool:
    """Tell whether members may work side by side: on a CPU whose memory holds them all.

    Those of a GPU would share its clocks and its heat, which draws ratios towards 1.
    """
    needs = [need(member) for member in members]
    return members[0].cell.runtime["device"] == "cpu" and rounds.fits(needs, psutil.virtual_memory().available)


def need(member: Measured) -> int:
    """Return the bytes of memory that a timed process of a member takes at most: its dense weights twice, and 1 GiB.

    Loading holds some weights in two forms for a moment, whatever the artifact weighs. Its draft's are weights, too.
    """
    own = member.artifact.info
    models = [own, own["draft"]] if "draft" in own else [own]
    return sum(2 * int(info["parameters"]) * ITEM[str(info["dtype"])] for info in models) + FURTHER


def _round(
    shop: Executor, members: Sequence[Measured], order: Sequence[int], number: int
) -> Iterator[tuple[int, Process | StageError]]:
    """Yield what the process of each member left in one round, or how it failed."""
    what = f"latency, round {number + 1}"
    jobs = [(_job(shop, members[position], number), members[position].log) for position in order]
    if len(jobs) > 1 and interleaves([members[position] for position in order]):
        yield from zip(order, shop.measure_side_by_side(jobs, what), strict=True)
        return
    for position, (job, log) in zip(order, jobs, strict=True):
        try:
            yield position, shop.measure(job, log, what)
        except StageError as failed:
            yield position, failed


def _job(shop: Executor, member: Measured, number: int) -> Job:
    baseline = member.cell.baseline(member.artifact.dtype)  # in one dtype, so that their files' bytes compare
    folder = keys.folder(keys.artifact_key(baseline))
    return Job(member.cell, member.artifact.folder, "latency", shop.folder(), round=number, baseline_artifact=folder)


def _step(process: Process) -> str:
    steps = {"token_s": "decode_speedup", "encode_s": "encode_speedup"}
    return next((speedup for name, speedup in steps.items() if process.values.get(name)), "ttft_speedup")
