"""Read what only a reader of a board can say: which differences count, the machine's price, what memory there is."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass, replace

from squeeze.core.errors import SqueezeError
from squeeze.records import serving
from squeeze.records.answers import Margins
from squeeze.records.record import Record

AMOUNT = re.compile(r"([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)((?:[kMG]i?)?)B?")
UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
# Columns that say what the others were computed with.
PRICE, MEMORY, MARGINS = "price_per_hour", "memory_budget_bytes", "margins"
DEFAULT = Margins()


@dataclass(frozen=True)
class Terms:
    """Hold the terms of a board.

    price: of the machine, in any currency, an hour; memory: bytes of a process; margins: of differences that count as
    none.
    """

    price: float | None = None
    memory: int | None = None
    margins: Margins = DEFAULT

    @classmethod
    def of(cls, price: str | None = None, memory: str | None = None, margins: str = "") -> Terms:
        """Read texts such as ``0.40``, ``4GB`` and ``speed=0.1``. Raises SqueezeError for one that is no such thing."""
        budget = None if memory is None else _memory(memory)
        return cls(None if price is None else _price(price), budget, Margins.of(margins))

    @classmethod
    def of_csv(cls, content: bytes) -> Terms:
        """Return the terms that a leaderboard.csv was made with.

        Raises ValueError where they are no numbers, SqueezeError for margins that are none.
        """
        try:
            row = next(csv.DictReader(io.StringIO(content.decode())), {})
        except csv.Error as error:
            raise ValueError(f"no CSV: {error}") from error
        price, memory, margins = (row.get(name) for name in (PRICE, MEMORY, MARGINS))
        return cls(float(price) if price else None, int(memory) if memory else None, Margins.of(margins or ""))

    @property
    def of_serving(self) -> bool:
        """Tell whether a price or a budget is among them."""
        return self.price is not None or self.memory is not None

    def applied(self, record: Record) -> Record:
        """Return the record with the figures that follow from these terms, and with the terms themselves."""
        figures, said = dict(record.estimates), dict(record.realised)
        if self.price is not None:
            figures |= serving.costs(record, self.price)
            said[PRICE] = self.price
        if self.memory is not None:
            figures |= serving.longest_context(record, self.memory)
            said[MEMORY] = self.memory
        return replace(record, estimates=figures, realised=said)


NONE = Terms()


def amount(text: str) -> float | None:
    """Return the number that a text such as ``80M``, ``4GB`` or ``2GiB`` names; None when it names none."""
    found = AMOUNT.fullmatch(text.strip())
    return None if found is None else float(found[1]) * UNITS[found[2]]


def _price(text: str) -> float:
    """Return a price of six digits, as many as a table keeps."""
    try:
        price = float(f"{float(text):.6g}")
    except ValueError:
        price = math.nan
    if not 0 < price < math.inf:
        raise SqueezeError(
            f"--price {text} is no price; expected more than 0, for an hour of the machine, such as --price 0.40"
        )
    return price


def _memory(text: str) -> int:
    if (found := amount(text)) is None or not 1 <= found < math.inf:
        raise SqueezeError(
            f"--memory {text} is no budget; expected at least 1 byte, such as --memory 4GB (k, M, G; ki, Mi, Gi)"
        )
    return int(found)
