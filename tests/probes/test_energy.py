"""Counters are read as differences, wrapped around, and missed without harm."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from squeeze.probes import energy
from squeeze.records.estimates import energy as figures

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
    meter = running("cpu")
    for file, value in ((one, 7_500_000), (other, 1_000_000), (core, 2_000_000)):
        file.write_text(str(value))
    meter.stop()
    assert meter.joules == pytest.approx(3.5)


def test_what_passes_between_two_turns_does_not_count(powercap: Path) -> None:
    file = package(powercap, "intel-rapl:0", 0)
    meter = energy.Meter("cpu")
    meter.stop()
    for before, after in ((1_000_000, 3_000_000), (8_000_000, 9_000_000)):
        file.write_text(str(before))
        meter.start()
        file.write_text(str(after))
        meter.stop()
    assert meter.joules == 3.0


def test_a_counter_that_wraps_around_goes_on(powercap: Path) -> None:
    file = package(powercap, "intel-rapl:0", SPAN - 1_000_000)
    meter = running("cpu")
    file.write_text("999999")
    meter.stop()
    assert meter.joules == 2.0  # to the microjoule: the counter goes from its range to 0
    meter.start()
    file.write_text("1999999")
    meter.stop()
    assert meter.joules == 3.0


def test_a_machine_that_does_not_count_says_so(powercap: Path) -> None:
    assert energy.Meter("cpu").joules is None
    (package(powercap, "intel-rapl:0", 0)).unlink()
    assert energy.Meter("cpu").joules is None


def running(device: str) -> energy.Meter:
    meter = energy.Meter(device)
    meter.start()
    return meter


class NoSuchDeviceError(Exception):
    """What NVML raises."""


def test_on_cuda_the_device_alone_is_counted(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(powercap, "intel-rapl:0", 0)
    millijoules = {"GPU-abc": iter([5_000, 6_000, 7_500, 7_750])}

    def handle(name: str) -> str:
        if name not in millijoules:
            raise NoSuchDeviceError
        return name

    nvml = SimpleNamespace(
        NVMLError=NoSuchDeviceError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=lambda name: next(millijoules[name]),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(uuid="abc"))
    meter = running("cuda:0")
    meter.stop()
    assert meter.joules == 1.5  # the counter began when it was found
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(uuid="gone"))
    assert energy.Meter("cuda").joules is None


def test_rounds_that_were_all_counted_make_a_figure() -> None:
    rounds = [{"energy_j_per_token": {"1": joules, "8": None}} for joules in (0.5, 0.7, 0.6)]
    found = figures(rounds)
    assert (found["energy_j_per_token"].value, found["energy_j_per_token"].n) == (0.6, 3)
    assert "energy_j_per_token_b8" not in found
    assert figures([{}]) == {}
