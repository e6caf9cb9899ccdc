"""Shares of the machine's limits, by hand; and limits that no real machine exceeds."""

import pytest
import torch

from squeeze.probes import peaks
from squeeze.records.roofline import Machine, mbu, mfu, prefill_operations


def test_decode_at_half_the_bandwidth() -> None:
    assert mbu(tokens_per_s=50.0, bytes_per_token=200e6, bandwidth=20e9) == pytest.approx(0.5)


def test_prefill_at_a_quarter_of_the_peak() -> None:
    assert mfu(seconds=2.0, operations=1e12, peak=2e12) == pytest.approx(0.25)


def test_operations_equal_a_count_of_every_product() -> None:
    tokens, width, layers, head = 6, 8, 3, 8 * 50
    linear_weights = 4 * width * width + 2 * width * 32
    expected = 0
    for _ in range(layers):
        for position in range(tokens):
            expected += 2 * linear_weights
            expected += 2 * 2 * width * (position + 0.5)  # keys and values up to here, the diagonal counted half
    expected += 2 * head
    counted = prefill_operations(
        block_weights=layers * linear_weights, head_weights=head, attention_width=width, layers=layers, tokens=tokens
    )
    assert counted == expected


def test_a_machine_survives_json() -> None:
    machine = Machine(2, 2.9e10, {"float32": 3.7e11})
    assert Machine.from_json(machine.to_json()) == machine


def test_peaks_are_measured_and_threads_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "SECONDS", 0.02)
    monkeypatch.setattr(peaks, "READ_BYTES", 64 * 2**20)
    monkeypatch.setattr(peaks, "SIDE", 256)
    before = torch.get_num_threads()
    machine = peaks.measure(1)
    assert torch.get_num_threads() == before
    assert 1e8 < machine.read_bandwidth < 1e13
    assert machine.matmul.keys() == {"float32", "bfloat16", "int8"}
    assert all(1e8 < peak < 1e16 for peak in machine.matmul.values())
