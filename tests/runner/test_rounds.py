"""Blocks share what they may share; within a block, drift favours nobody."""

from __future__ import annotations

import pytest

from squeeze.core.paths import conf
from squeeze.request.plain_yaml import read_plain
from squeeze.runner.rounds import blocks, order
from tests.faults.sweeps import MODEL, PROTOCOL, RUNTIME, cell


def test_two_members_alternate() -> None:
    assert ["".join(order("AB", number)) for number in range(6)] == ["AB", "BA", "AB", "BA", "AB", "BA"]


def places(members: str, rounds: int) -> list[float]:
    """The average place of each member over so many rounds."""
    orders = [order(members, number) for number in range(rounds)]
    return [sum(each.index(member) for each in orders) / rounds for member in members]


@pytest.mark.parametrize("members", ["AB", "ABC", "ABCDE", "ABCDEFG"])
@pytest.mark.parametrize("rounds", [2, 4, 8, 10, 12, 16])
def test_over_pairs_of_rounds_everyone_stands_in_the_middle(members: str, rounds: int) -> None:
    assert set(places(members, rounds)) == {(len(members) - 1) / 2}


@pytest.mark.parametrize("members", ["AB", "ABC", "ABCDE", "ABCDEFG"])
@pytest.mark.parametrize("rounds", [5, 7, 9])
def test_odd_counts_of_rounds_favour_somebody(members: str, rounds: int) -> None:
    """Which is why a protocol has an even number of them."""
    assert max(places(members, rounds)) - min(places(members, rounds)) > 0.1


@pytest.mark.parametrize("name", ["smoke", "standard", "paper", "long", "wikitext2"])
def test_every_protocol_of_ours_is_in_balance(name: str) -> None:
    protocol = read_plain(conf() / "protocol" / f"{name}.yaml")
    assert isinstance(protocol, dict)
    members = "ABCDEFGHIJ"[: 1 + protocol["block"]]
    for rounds in range(protocol["rounds"], protocol["most_rounds"] + 1, 2):
        assert len(set(places(members, rounds))) == 1


def test_every_round_has_every_member_once() -> None:
    for number in range(10):
        assert sorted(order("ABCDE", number)) == list("ABCDE")


def test_members_begin_a_pair_in_turn() -> None:
    assert [order("ABC", number)[0] for number in (0, 2, 4)] == ["A", "B", "C"]


def test_a_linear_drift_cancels_in_each_pair_of_rounds() -> None:
    times = dict.fromkeys("ABCDE", 0.0)
    clock = 0
    for number in range(2):
        for member in order("ABCDE", number):
            times[member] += clock
            clock += 1
    assert len(set(times.values())) == 1


def test_blocks_hold_what_can_share_a_baseline() -> None:
    other_dtype = cell("b", model={**MODEL, "dtype": "float32"})
    other_model = cell("c", model={**MODEL, "seed": 1})
    other_machine = cell("d", runtime={**RUNTIME, "threads": 2})
    other_runtime = cell("f", runtime={**RUNTIME, "name": "compile", "_target_": "compiled.Compiled"})
    other_protocol = cell("e", protocol={**PROTOCOL, "rounds": 3})
    cells = [cell("a"), other_model, other_dtype, other_machine, other_protocol, other_runtime]
    together = [cell("a"), other_dtype, other_runtime]
    assert blocks(cells) == [together, [other_model], [other_machine], [other_protocol]]


def test_blocks_are_no_larger_than_the_protocol_says() -> None:
    assert [len(block) for block in blocks(cell(f"t{number}") for number in range(9))] == [4, 4, 1]


def test_what_calibrated_rows_alone_are_asked_parts_no_block() -> None:
    asked_more = cell("b", protocol={**PROTOCOL, "perplexity_ood": {"corpus": "speeches"}})
    assert blocks([cell("a"), asked_more]) == [[cell("a"), asked_more]]
