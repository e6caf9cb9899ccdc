"""What a measuring process writes is what others read, or they are told that it is not."""

import json
from pathlib import Path

import numpy as np
import pytest

from squeeze.core.errors import IntegrityError
from squeeze.probes import samples
from squeeze.probes.samples import Samples


@pytest.fixture
def written(tmp_path: Path) -> Path:
    collected = Samples(tmp_path)
    collected.put("perplexity", 13.445)
    collected.put_entry("ttft_s", "1", [0.5, 0.25])
    collected.put_entry("ttft_s", "8", [1.0])
    collected.put_array("token_nll", np.arange(4, dtype=np.float32))
    collected.write()
    return tmp_path


def test_values_and_arrays_survive(written: Path) -> None:
    read = samples.read(written)
    assert read.values == {"perplexity": 13.445, "ttft_s": {"1": [0.5, 0.25], "8": [1.0]}}
    np.testing.assert_array_equal(read.arrays["token_nll"], np.arange(4, dtype=np.float32))
    assert read.arrays["token_nll"].dtype == np.float32


def test_arrays_stay_closed_when_not_wanted(written: Path) -> None:
    (written / samples.ARRAYS_NAME).unlink()
    assert samples.read(written, arrays=False).values["perplexity"] == 13.445


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    collected = Samples(tmp_path)
    collected.put("a", 1)
    collected.put_entry("b", "1", 1)
    collected.put_array("c", np.zeros(1))
    with pytest.raises(ValueError, match="already put"):
        collected.put("a", 2)
    with pytest.raises(ValueError, match="already put"):
        collected.put_entry("b", "1", 2)
    with pytest.raises(ValueError, match="already put"):
        collected.put_array("c", np.ones(1))


def test_what_json_cannot_hold_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'a' is not JSON"):
        Samples(tmp_path).put("a", np.float32(1))
    with pytest.raises(TypeError, match="objects"):
        Samples(tmp_path).put_array("a", np.array([None]))


def test_a_changed_array_file_is_noticed(written: Path) -> None:
    path = written / samples.ARRAYS_NAME
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="expected"):
        samples.read(written)


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"perplexity": 1.0})])
def test_a_torn_file_is_noticed(written: Path, content: str) -> None:
    (written / samples.JSON_NAME).write_text(content)
    with pytest.raises(IntegrityError, match="not a samples file"):
        samples.read(written)


def test_a_process_that_wrote_nothing_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        samples.read(tmp_path)
