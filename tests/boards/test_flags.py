from squeeze.boards import flags
from squeeze.boards.table import table
from squeeze.boards.words import short_label
from squeeze.records import record as records
from squeeze.records.record import Estimate
from tests.fabricated import cell, record


def rows(*kinds):
    made = [record(cell("rtn", "q", {"bits": bits}), flags=own) for bits, own in enumerate(kinds, start=2)]
    frame = table(made)
    return frame.assign(name=[short_label(row) for _, row in frame.iterrows()])


def test_flags_are_spelt_out_with_the_rows_that_have_them():
    told = list(flags.explained(rows(("unsteady", "contended"), ("unsteady",), ("contended",))))
    assert told == [
        f"* contended (rtn-2, rtn-4): {flags.WORDS['contended']}",
        f"unsteady (rtn-2, rtn-3): {flags.WORDS['unsteady']}",
    ]


def test_a_flag_that_nobody_explained_stands_for_itself_and_in_one_line():
    assert list(flags.explained(rows(("read\x1b[2J ahead",), ()))) == ["* read ahead (rtn-2)"]


def test_every_flag_of_records_has_its_words():
    named = {records.CONTENDED, records.UNSTEADY, records.WARMING, records.GRID_FLATTERED, records.NOT_REALISED}
    assert named | {*records.UNRANKED} == flags.WORDS.keys()


def test_a_failed_verdict_has_its_reason_below():
    few = {"decode_speedup": Estimate(3.0, n=2), "ttft_speedup": Estimate(0.9, n=2)}
    frame = table([record(cell("rtn", "q", {"bits": 4}), few)]).assign(name=["rtn-4"])
    [told] = flags.explained(frame)
    assert told.startswith("? ")
    assert set(told[2:].partition(" (")[0].split(", ")) == {"decode_speedup", "ttft_speedup"}
    assert told.endswith(" (rtn-4): 2 rounds, 5 are needed")


def test_a_verdict_that_a_flag_prevents_is_told_once():
    fast = {"decode_speedup": Estimate(3.0, 2.0, 4.0, 1e-9, 8)}
    frame = table([record(cell("rtn", "q", {"bits": 4}), fast, flags=("warming",))]).assign(name=["rtn-4"])
    assert list(flags.explained(frame)) == [f"* warming (rtn-4): {flags.WORDS['warming']}"]
