"""What tests share: the figure of a promise, for docs/trust.md (``nox -s trust``), and a user's folder of choices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.planted import plant

Figure = Callable[[str], None]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """States what the test found, in words: ``figure("200 kills: 0 records lost")``."""
    return partial(record_property, "figure")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder of choices, with techniques of their own: those of tests/planted.py."""
    plant(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the numbers of ``@pytest.mark.promise(1)`` into the report; leave out what only a quiet machine can show."""
    if "promise" not in config.option.markexpr:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("quiet")])
        items[:] = [item for item in items if not item.get_closest_marker("quiet")]
    for item in items:
        item.user_properties += [("promise", mark.args[0]) for mark in item.iter_markers("promise")]
