"""Kill a training from within, at a chosen call of its loss."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest


def dies_at(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, call: int) -> list[int]:
    """Have a function of a module raise KeyboardInterrupt at one call; returns a list that grows with each call."""
    real, calls = getattr(module, name), []

    def deadly(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, name, deadly)
    return calls
