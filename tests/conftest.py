"""How a test says which promise it shows, and what it found: ``nox -s trust`` writes both into docs/trust.md."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

Figure = Callable[[str], None]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """States what the test found, in words: ``figure("200 kills: 0 records lost")``."""
    return partial(record_property, "figure")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the numbers of ``@pytest.mark.promise(1)`` into the report, beside the figures."""
    for item in items:
        item.user_properties += [("promise", mark.args[0]) for mark in item.iter_markers("promise")]
