"""Provide the uncompressed models that candidates are compared with: each built and scored once per run."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from squeeze.core.cache import cache_root, sealed
from squeeze.core.hashing import digest
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.runner import stages, timing
from squeeze.runner.jobs.executor import Executor
from squeeze.runner.jobs.outcome import StageError
from squeeze.runner.results import Measured
from squeeze.sources.identity import baseline_hash

SPEED_DTYPES = ("float32", "bfloat16")  # the faster one on this machine is the speed to beat
CHOICE = "choice.json"


@dataclass
class Baselines:
    """Provide the baselines of one run, by cell key; of one that cannot be had, keep the reason."""

    shop: Executor
    store: RecordStore
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    _known: dict[str, Measured | StageError] = field(default_factory=dict)
    _faster: dict[Path, Measured] = field(default_factory=dict)

    def built(self, cell: Cell, dtype: str) -> Measured:
        """Return the uncompressed model of a cell in ``dtype``. Raises StageError when it cannot be built."""
        baseline = cell.baseline(dtype)
        if baseline.key not in self._known:
            log = self.store.log(baseline, self.run)
            try:
                self._known[baseline.key] = Measured(baseline, log, stages.build(self.shop, baseline, log))
            except StageError as failed:
                self._known[baseline.key] = _verdict(failed)
        return self._sound(baseline)

    def scored(self, cell: Cell, dtype: str) -> Measured:
        """Return that model with its quality known. Raises StageError when it cannot be built or scored."""
        member = self.built(cell, dtype)
        if member.scoring is None:
            try:
                self._known[member.cell.key] = replace(member, scoring=stages.score(self.shop, member, None))
            except StageError as failed:
                self._known[member.cell.key] = _verdict(failed)
        return self._sound(member.cell)

    def rivals(self, cell: Cell, fingerprint: str) -> list[Measured]:
        """Return the models that may be the speed to beat: the one known to be, else those that can be built.

        Raises StageError when none can.
        """
        choice = _choice(cell, fingerprint)
        dtypes = [json.loads(choice.read_text())["dtype"]] if choice.is_file() else SPEED_DTYPES
        members: list[Measured] = []
        for dtype in dtypes:
            try:
                members.append(self.built(cell, dtype))
            except StageError as failed:
                failure = _verdict(failed)
        if not members:
            raise failure
        return members

    def fastest(self, cell: Cell, fingerprint: str) -> Measured:
        """Return the baseline to beat in speed, not timed: a pilot finds its dtype; its times are not kept.

        Nor is its choice, beyond this run, unless the difference was shown. Raises StageError when no baseline can
        be timed.
        """
        choice = _choice(cell, fingerprint)
        if choice not in self._faster:
            rivals = self.rivals(cell, fingerprint)
            try:
                winner, shown = (rivals[0], False) if len(rivals) == 1 else timing.faster(self.shop, rivals)
            except StageError as failed:
                raise of_baseline(failed) from failed
            self._faster[choice] = winner
            if shown:
                _keep(choice, {"dtype": winner.cell.model["dtype"]})
        return self._faster[choice]

    def _sound(self, baseline: Cell) -> Measured:
        known = self._known[baseline.key]
        if isinstance(known, StageError):
            raise known
        return known


def of_baseline(failed: StageError) -> StageError:
    """Return the same failure, said to be the baseline's."""
    reason = failed.failure.reason
    return StageError(replace(failed.failure, reason=f"baseline: {reason.removeprefix('baseline: ')}"))


def _verdict(failed: StageError) -> StageError:
    """Return a baseline's failure, to be kept. Raises it where it is no verdict: the next cell may fare better."""
    if failed.failure.status is None:
        raise of_baseline(failed) from failed
    return of_baseline(failed)


def _keep(choice: Path, words: Mapping[str, str]) -> None:
    def write(folder: Path) -> None:
        (folder / CHOICE).write_text(json.dumps(words))

    sealed(choice.parent.relative_to(cache_root()).as_posix(), write)


def _choice(cell: Cell, fingerprint: str) -> Path:
    key = digest([fingerprint, baseline_hash(cell.model)])
    return cache_root() / "speed_baseline" / key / CHOICE
