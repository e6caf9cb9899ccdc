from dataclasses import replace

import pytest

from squeeze.records.record import Record, Status
from squeeze.request.cell import Cell
from squeeze.runner.listing import default, forecast


def cell(technique="rtn", bits=4, rounds=5):
    return Cell(
        model={"name": "m"},
        technique={"name": technique, "steps": [{"bits": bits}]},
        runtime={"name": "eager", "device": "cpu"},
        protocol={"name": "p", "rounds": rounds, "perplexity": {"tokens": 8000}, "tasks": ["a", "b"], "items": 10},
    )


def record(of, seconds, status=Status.OK):
    return Record(
        cell=of.to_json(), key=of.key, status=status, artifact_key="", fingerprint="", attempt="", started="",
        finished="", stages={"build": seconds / 4, "quality": 3 * seconds / 4},
    )  # fmt: skip


def test_without_records_the_rule_of_thumb_counts_processes_and_tokens():
    assert default(cell()) == 12 * 10 + (8000 + 2 * 10 * 100) / 1000
    assert default(cell(rounds=10)) - default(cell(rounds=5)) == 100


def test_a_whole_text_counts_as_many_tokens():
    part = cell()
    whole = replace(part, protocol={**part.protocol, "perplexity": {"tokens": None}})
    assert default(whole) - default(part) == pytest.approx((300_000 - 8000) / 1000)


def test_a_like_cell_takes_the_median_of_what_was_taken():
    records = [record(cell(bits=bits), seconds) for bits, seconds in [(8, 40), (3, 60), (2, 2000)]]
    found = forecast([cell(bits=8), cell(bits=4), cell("magnitude", bits=5)], records)
    assert list(found.values()) == [60, 60, default(cell())]


def test_a_failed_attempt_says_nothing_about_time():
    found = forecast([cell()], [record(cell(), 1, Status.CRASHED)])
    assert found == {cell().key: default(cell())}
