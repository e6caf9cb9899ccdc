"""What a newcomer types first gives ok rows, a board, and something to type next; nothing is faked but its length."""

from __future__ import annotations

from pathlib import Path

import pytest

from squeeze.cli import main
from squeeze.records.record import Record, Status
from squeeze.records.store import RecordStore

pytestmark = [pytest.mark.timed, pytest.mark.real]
ASKED = ["model=tiny", "technique=none,rtn", "bits=8,2", "protocol=smoke"]
SHORT = ["protocol.rounds=2", "protocol.most_rounds=2", "protocol.latency.decode_tokens=8"]


def test_a_first_run_gives_ok_rows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *ASKED, *SHORT, "--results", str(tmp_path)]) == 0
    told = capfd.readouterr()
    assert told.err.startswith("3 cells, ")
    assert "next: squeeze show rtn-8-g64" in told.err
    found: dict[str, Record] = {}
    for record in RecordStore(tmp_path).records():
        assert record.status is Status.OK, record.reason
        bits = record.claimed.get("bits", 16)
        found[str(bits)] = record
    perplexity = {bits: record.estimates["perplexity"].value for bits, record in found.items()}
    assert perplexity["16"] < 45
    assert perplexity["8"] == pytest.approx(perplexity["16"], rel=0.01)
    low = found["2"].estimates["perplexity_delta"].low
    assert low is not None
    assert low > 5
    assert found["8"].estimates["bytes"].value < 400_000
