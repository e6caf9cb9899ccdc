"""Samples are what they were when they were packed, or are refused before they are unpacked."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squeeze.core.errors import IntegrityError
from squeeze.records import store as kept
from squeeze.records.arrays import load
from squeeze.records.store import RecordStore
from tests.fabricated import cell, record
from tests.faults.hostile import header, packed, zipped

CELL = cell("rtn", "quantization", {"bits": 4})
GOOD: dict[str, Any] = {
    "token_s_b1": np.full((5, 8), 0.1),
    "baseline_token_s_b1": np.full((5, 8), 0.2),
    "turns_token_s_b1": np.zeros((5, 4, 3)),
    "prompt_s_t512": np.full((5, 2), 0.1),
    "turns_prompt_s_t512": np.zeros((5, 2, 3)),
    "interleaved": np.ones(5, bool),
    "token_nll": np.arange(6, dtype=np.float32),
    "baseline_token_nll": np.ones(6, np.float32),
    "kl": np.ones(6, np.float32),
    "top1": np.ones(6, bool),
    "window": np.zeros(6, np.int32),
    "generated": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "sciq_correct": np.ones(4, bool),
    "sciq_loglik": np.ones((4, 3), np.float32),
    "of_tomorrow": np.ones((2, 2, 2, 2), np.float16),
}


def loaded(folder: Path, content: bytes) -> dict[str, Any]:
    store = RecordStore(folder)
    store.prepare()
    return load(store, store.write(record(CELL), content))


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_come_back_as_they_were(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "made.npz"
    (np.savez_compressed if compressed else np.savez)(path, **GOOD)
    found = loaded(tmp_path, path.read_bytes())
    assert found.keys() == GOOD.keys()
    for name, array in GOOD.items():
        assert (found[name].dtype, found[name].tolist()) == (array.dtype, array.tolist())


def test_a_record_without_samples_has_no_arrays(tmp_path: Path) -> None:
    assert load(RecordStore(tmp_path), record(CELL)) == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token_nll": np.ones(5, np.float32)}, r"token_nll and baseline_token_nll are of unlike shapes \(\(5,\)"),
        ({"top1": np.ones(5, bool)}, "kl and top1 are of unlike shapes"),
        ({"token_s_b1": np.full((4, 8), 0.1)}, "unlike numbers of rounds .*interleaved 5, .*token_s_b1 4"),
        ({"token_s_b1": np.full((5, 8), -0.1)}, "token_s_b1 holds times that are not positive"),
        ({"turns_token_s_b1": np.zeros((5, 4, 2))}, r"expected \(rounds, turns, 3\)"),
        ({"prompt_s_t512": np.zeros((5, 2))}, "prompt_s_t512 holds times that are not positive"),
        ({"prompt_s_t32": np.full((4, 2), 0.1)}, "unlike numbers of rounds .*prompt_s_t32 4"),
        ({"prompt_s_t32": np.full(5, 0.1)}, r"prompt_s_t32 is of float64 and shape \(5,\), expected 2 dimensions"),
        ({"kl": np.ones(6, np.int32)}, r"kl is of int32 and shape \(6,\), expected 1 dimensions"),
        ({"generated": np.ones(6, np.int32)}, "generated is of int64|generated is of int32"),
        ({"sciq_correct": np.array(["yes"] * 4)}, "sciq_correct is of type <U3, expected numbers"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(IntegrityError, match=rf"\.npz holds no samples: .*({words})"):
        loaded(tmp_path, packed({**GOOD, **changes}))


def test_nothing_is_unpacked_that_claims_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zipped({"kl.npy": header("(8388608,)") + bytes(2**25)})
    monkeypatch.setattr(kept, "LARGEST_SAMPLES", 2**30)  # of what is written
    monkeypatch.setattr("squeeze.records.arrays.LARGEST_SAMPLES", 2**20)
    tracemalloc.start()
    with pytest.raises(IntegrityError, match=r"33,554,\d+ bytes when unpacked, expected at most 1,048,576"):
        loaded(tmp_path, bomb)
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()


def test_a_directory_that_is_told_in_zip64_is_refused(tmp_path: Path) -> None:
    content = packed(GOOD)
    with pytest.raises(IntegrityError, match="a directory of"):
        loaded(tmp_path, content[:-22] + b"PK\x06\x07" + bytes(16) + content[-22:])


def test_samples_that_could_not_be_read_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "LARGEST_SAMPLES", 100)
    with pytest.raises(ValueError, match="expected at most 100: keep fewer"):
        loaded(tmp_path, packed(GOOD))
    assert not list(tmp_path.rglob("*.npz"))
