"""Counters are read as differences, wrapped around, and missed without harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from squeeze.figures import energy as figures
from squeeze.probes import energy

SPAN = 262_143_328_850


def package(folder: Path, name: str, microjoules: int) -> Path:
    zone = folder / name
    zone.mkdir()
    (zone / "max_energy_range_uj").write_text(f"{SPAN}\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    return zone / "energy_uj"


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def test_packages_add_up_and_their_parts_do_not_count_twice(powercap: Path) -> None:
    one, other = package(powercap, "intel-rapl:0", 5_000_000), package(powercap, "intel-rapl:1", 0)
    core = package(powercap, "intel-rapl:0:0", 0)
    joules = energy.started("cpu")
    for file, value in ((one, 7_500_000), (other, 1_000_000), (core, 2_000_000)):
        file.write_text(str(value))
    assert joules() == pytest.approx(3.5)


def test_a_counter_that_wraps_around_goes_on(powercap: Path) -> None:
    file = package(powercap, "intel-rapl:0", SPAN - 1_000_000)
    joules = energy.started("cpu")
    file.write_text("999999")
    assert joules() == pytest.approx(2.0)


def test_a_machine_that_does_not_count_says_so(powercap: Path) -> None:
    assert energy.started("cpu")() is None
    (package(powercap, "intel-rapl:0", 0)).unlink()
    assert energy.started("cpu")() is None


def test_rounds_that_were_all_counted_make_a_figure() -> None:
    rounds = [{"energy_j_per_token": {"1": joules, "8": None}} for joules in (0.5, 0.7, 0.6)]
    found = figures(rounds)
    assert (found["energy_j_per_token"].value, found["energy_j_per_token"].n) == (0.6, 3)
    assert "energy_j_per_token_b8" not in found
    assert figures([{}]) == {}
