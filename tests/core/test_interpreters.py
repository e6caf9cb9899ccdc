"""Processes of ours import this very squeeze, and name the packages that engines' environments see behind theirs."""

from __future__ import annotations

import os
import site

import pytest

from squeeze.core import interpreters
from squeeze.core.interpreters import PACKAGES, environment_with
from squeeze.core.paths import PACKAGE


def test_this_checkout_comes_first_and_what_the_user_named_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    made = environment_with({"A": "b"})
    assert made["PYTHONPATH"] == os.pathsep.join([str(PACKAGE.parent), "/somewhere"])
    assert made["A"] == "b"
    assert made[PACKAGES].split(os.pathsep) == interpreters.packages()
    assert site.getsitepackages()[0] in interpreters.packages()


def test_an_installed_squeeze_is_not_named_for_its_neighbours_would_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(interpreters, "packages", lambda: ["/elsewhere", str(PACKAGE.parent)])
    monkeypatch.delenv(PACKAGES, raising=False)
    assert environment_with({})["PYTHONPATH"] == ""
    monkeypatch.setenv(PACKAGES, str(PACKAGE.parent))  # within an engine's environment, whose own folders are others
    monkeypatch.setattr(interpreters, "packages", lambda: ["/elsewhere"])
    made = environment_with({})
    assert (made["PYTHONPATH"], made[PACKAGES]) == ("", str(PACKAGE.parent))
