"""Price and memory are the reader's: read from texts, kept beside what follows from them, found again in a CSV."""

from __future__ import annotations

import pytest

from squeeze.boards import leaderboard
from squeeze.boards.table import table
from squeeze.boards.terms import NONE, Terms, amount
from squeeze.core.errors import SqueezeError
from tests.fabricated import smoke_records


@pytest.mark.parametrize(
    ("text", "number"),
    [("80M", 80e6), ("4GB", 4e9), ("4 GB", None), ("2GiB", 2 * 2**30), (" 1e3 ", 1e3), ("12", 12), ("4TB", None)],
)
def test_an_amount_has_a_unit_or_none(text: str, number: float | None) -> None:
    assert amount(text) == number


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "cheap", ""])
def test_what_is_no_price_is_refused_with_what_is_one(text: str) -> None:
    with pytest.raises(SqueezeError) as refusal:
        Terms.of(text, None)
    assert f"--price {text} is no price; expected more than 0" in str(refusal.value)
    assert "such as --price 0.40" in str(refusal.value)


@pytest.mark.parametrize("text", ["0", "-4GB", "4TB", "much"])
def test_what_is_no_budget_is_refused_with_what_is_one(text: str) -> None:
    with pytest.raises(SqueezeError, match=rf"--memory {text} is no budget; expected at least 1 byte"):
        Terms.of(None, text)


def test_without_terms_a_record_is_as_it_was() -> None:
    record = smoke_records()[6]
    assert NONE.applied(record) == record
    assert not Terms.of().of_serving


def test_a_table_says_its_terms_and_a_csv_gives_them_back() -> None:
    terms = Terms.of("0.4012345678", "4GiB")  # the price has as many digits as the table
    frame = table(map(terms.applied, smoke_records()))
    assert set(frame["price_per_hour"]) == {0.401235}
    assert frame["memory_budget_bytes"].tolist() == [2**32] * len(frame)  # of failed rows, too
    rate, cost = frame.loc[0, ["decode_tokens_per_s", "cost_per_mtok"]]
    assert cost == pytest.approx(0.401235 / 3600 / rate * 1e6)
    assert Terms.of_csv(leaderboard.csv(frame)) == terms
    assert Terms.of_csv(leaderboard.csv(table(smoke_records()))) == NONE
