"""See that the artifact has left alone what belongs to the whole process, now that all has been timed."""

from squeeze.core.errors import IntegrityError
from squeeze.probes import global_state
from squeeze.probes.global_state import Snapshot
from squeeze.probes.samples import Samples
from squeeze.request.cell import Cell

SHOWN = 4  # changes in a reason


def test_unchanged(before: Snapshot, cell: Cell, samples: Samples) -> None:
    found = global_state.dishonest(before.changes(), cell.runtime)
    found += global_state.too_busy(samples.values.get("processors", {}), cell.runtime)
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise IntegrityError(f"the artifact changed its process: {'; '.join(found[:SHOWN])}{more}")
