"""Promise 1 at the level of files: a record is there whole or not at all, and nothing else can spoil that."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.core.interpreters import environment_with
from squeeze.records import store
from squeeze.records.record import Estimate, Record
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from tests.fabricated import cell, record

CELL = cell("rtn", "quantization", {"bits": 4})
KILLS = 20

WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from squeeze.records.store import RecordStore
from tests.fabricated import cell, record
store = RecordStore(Path(sys.argv[1]))
blank = record(cell("rtn", "quantization", {"bits": 4}))
for number in range(int(sys.argv[3])):
    attempt = f"{sys.argv[2]}x{number}"
    store.write(replace(blank, attempt=attempt), b"samples of " + attempt.encode() + bytes(20_000))
    print(attempt, flush=True)
"""


@pytest.fixture
def records(tmp_path: Path) -> RecordStore:
    made = RecordStore(tmp_path / "results")
    made.prepare()
    return made


def read_all(records: RecordStore) -> tuple[list[Record], dict[str, str]]:
    passed_over: dict[str, str] = {}
    return list(records.records(lambda path, why: passed_over.update({path.name: why}))), passed_over


def start_writer(records: RecordStore, name: str, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(records.results), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment_with({}), cwd=Path(__file__).parents[2])


def test_what_is_written_is_read(records: RecordStore) -> None:
    written = records.write(record(CELL, {"perplexity": Estimate(13.5)}), b"raw samples")
    assert read_all(records) == ([written], {})
    assert records.samples(written).read_bytes() == b"raw samples"


def test_changed_or_missing_samples_are_noticed(records: RecordStore) -> None:
    written = records.write(record(CELL), b"raw samples")
    path = records.samples(written)
    path.write_bytes(b"raw sample")
    with pytest.raises(IntegrityError, match="sha256"):
        records.samples(written)
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        records.samples(written)


@pytest.mark.promise(15)
def test_samples_are_looked_for_in_the_records_folder_only(records: RecordStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    foreign = record(CELL, samples={"file": "../../secret", "sha256": "0" * 64})
    with pytest.raises(IntegrityError, match="missing"):
        records.samples(foreign)


@pytest.mark.promise(1)
@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": 1}', b"[]", b"\x00\xff", b'{"schema": 99}', b"[" * 99_999])
def test_foreign_and_truncated_files_are_passed_over_and_kept(records: RecordStore, content: bytes) -> None:
    written = records.write(record(CELL))
    foreign = records.folder / "a-foreign.json"
    foreign.write_bytes(content)
    found, passed_over = read_all(records)
    assert found == [written]
    assert list(passed_over) == ["a-foreign.json"]
    assert foreign.read_bytes() == content


@pytest.mark.promise(1)
def test_any_truncation_is_noticed(records: RecordStore) -> None:
    written = records.write(record(CELL, {"perplexity": Estimate(13.5)}))
    (path,) = records.folder.glob("*.json")
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        assert read_all(records)[0] == []
    path.write_bytes(content)
    assert read_all(records)[0] == [written]


def test_a_results_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file, not a folder")
    with pytest.raises(SqueezeError, match=r"results folder .* is not writable"):
        RecordStore(tmp_path / "results").prepare()


@pytest.mark.promise(1)
@pytest.mark.parametrize("fails_at", [1, 2], ids=["samples", "record"])
def test_a_full_disk_leaves_nothing_torn(records: RecordStore, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    before = records.write(record(CELL), b"raw samples")
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SqueezeError, match=r"No space left.*free some space.*squeeze resume"):
        records.write(record(CELL, attempt="f" * 32), b"raw samples")
    assert read_all(records) == ([before], {})
    assert not list(records.folder.glob(".*"))


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Let the kernel refuse, in the middle of a write, whatever would make a file larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.promise(1)
@pytest.mark.parametrize(
    ("samples", "room"), [(20_000, 0), (20_000, 1), (20_000, 8_192), (20_000, 19_999), (10, 10), (10, 400)]
)
def test_a_write_that_the_kernel_cuts_short_leaves_nothing_torn(records: RecordStore, samples: int, room: int) -> None:
    before = records.write(record(CELL), b"raw samples")
    with no_file_beyond(room), pytest.raises(SqueezeError, match=r"File too large.*free some space"):
        records.write(record(CELL, attempt="f" * 32), bytes(samples))
    assert read_all(records) == ([before], {})
    assert not list(records.folder.glob(".*"))
    after = records.write(record(CELL, attempt="f" * 32), bytes(samples))
    assert {each.attempt for each in read_all(records)[0]} == {before.attempt, after.attempt}


def test_a_record_is_small_and_finite() -> None:
    with pytest.raises(ValueError, match="16384"):
        store.encode(record(CELL, block_nll=(1.23456,) * 2000))
    with pytest.raises(ValueError, match="JSON"):
        store.encode(record(CELL, {"perplexity": Estimate(float("nan"))}))


def test_file_names_are_safe() -> None:
    wild = Cell.from_json({**CELL.to_json(), "model": {**CELL.model, "name": "../org/model: a*b"}})
    name = store.stem(wild, "a1")
    assert "/" not in name
    assert not name.startswith(".")
    assert name.endswith("-a1")


@pytest.mark.promise(1)
def test_many_writers_share_a_folder(records: RecordStore) -> None:
    writers = [start_writer(records, f"w{number}", 25) for number in range(4)]
    for writer in writers:
        writer.communicate(timeout=60)
    found, passed_over = read_all(records)
    assert len(found) == 100
    assert passed_over == {}


@pytest.mark.promise(1)
def test_killed_writers_lose_nothing_that_they_acknowledged(
    records: RecordStore, figure: Callable[[str], None]
) -> None:
    """SQUEEZE_TEST_KILLS=200 repeats this with 200 kills."""
    rng = random.Random(0)
    acknowledged: list[str] = []
    kills = int(os.environ.get("SQUEEZE_TEST_KILLS", KILLS))
    for number in range(kills):
        writer = start_writer(records, f"k{number}", 10**6)
        assert writer.stdout is not None
        acknowledged += [writer.stdout.readline().decode().strip() for _ in range(rng.randrange(1, 4))]
        try:
            writer.wait(rng.uniform(0, 0.005))
        except subprocess.TimeoutExpired:
            writer.send_signal(signal.SIGKILL)
        acknowledged += writer.communicate()[0].decode().split()
    found, passed_over = read_all(records)
    assert passed_over == {}
    assert set(acknowledged) <= {each.attempt for each in found}
    for each in found:
        assert records.samples(each).read_bytes().startswith(b"samples of " + each.attempt.encode())
    figure(f"{kills} SIGKILLs of writers at work: {len(acknowledged):,} records acknowledged, 0 lost, 0 unreadable")


def test_ten_thousand_records_are_read_in_time(records: RecordStore) -> None:
    blank = record(CELL, {"perplexity": Estimate(13.5)}, block_nll=(2.12345,) * 256)
    content = json.loads(store.encode(blank))
    for number in range(2_000):
        (records.folder / f"{number}.json").write_text(json.dumps({**content, "attempt": str(number)}))
    start = os.times().user
    assert len(read_all(records)[0]) == 2_000
    assert os.times().user - start < 1.0  # 5 s for the 10,000


def test_the_attempt_names_the_log(records: RecordStore) -> None:
    log = records.log(CELL, "a1")
    assert log.parent.is_dir()
    assert log.name == f"{CELL.label}-a1.log"


def test_a_folder_without_one_record_is_an_error_where_one_is_required(tmp_path: Path) -> None:
    kept = RecordStore(tmp_path)
    kept.prepare()
    (kept.folder / "torn.json").write_text("{")
    with pytest.raises(SqueezeError, match=r"no record in .*`squeeze run` makes them"):
        list(kept.require(lambda *_: None))
    made = kept.write(record(cell("rtn", "quantization", {"bits": 4})))
    assert list(kept.require(lambda *_: None)) == [made]
