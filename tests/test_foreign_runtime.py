"""The whole way of an engine in an environment of its own: made, held against eager, scored and timed beside others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squeeze.boards.table import table
from squeeze.core import environment
from squeeze.core.cache import sealed
from squeeze.records.record import Record, Status
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.runner.run import run
from squeeze.sources.corpora import corpus_hash
from tests.faults.sweeps import MODEL, RUNTIME
from tests.foreign import RIGHT, WRONG, named, offer, requirements, wheel
from tests.test_end_to_end import CORPUS, RTN, SMALL

pytestmark = pytest.mark.timed

NAMES = ("right", "wrong", "absent")


def cell(runtime: str, *steps: dict[str, Any]) -> Cell:
    technique = {"name": "rtn" if steps else "none", "family": "quantization", "steps": list(steps)}
    own = {**RUNTIME, "name": runtime, "_target_": f"toys:{runtime}.Toy"} if runtime != "eager" else RUNTIME
    return Cell(model=MODEL, technique=technique, runtime=own, protocol=SMALL)


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as made:
        yield made


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> dict[str, Record]:
    """A run over the eager runtime, an engine that is right, one that is wrong, and one whose package is not there."""
    folder = tmp_path_factory.mktemp("foreign")
    words = np.random.default_rng(0).choice(["one", "two", "three", "a", "longer", "word", "\n"], 20_000)

    def write(corpus: Path) -> None:
        (corpus / "text.txt").write_text(" ".join(words))

    patch.setenv("SQUEEZE_CACHE", str(folder / "cache"))
    patch.setenv("PIP_CONFIG_FILE", os.devnull)
    sealed(f"corpora/{CORPUS}-{corpus_hash(CORPUS)[:16]}", write)
    wheel(folder / "index", RIGHT, "1.0")
    wheel(folder / "index", WRONG, "2.0")
    versions = zip(NAMES, ("1.0", "2.0", "3.0"), strict=True)
    offer(folder / "site", patch, {name: requirements(folder / "index", version) for name, version in versions})
    cells = [cell("eager"), cell("right"), cell("right", RTN), cell("wrong"), cell("absent")]
    assert run(cells, folder / "results") == 0
    found = RecordStore(folder / "results").records(lambda path, why: pytest.fail(f"{path}: {why}"))
    return {f"{record.cell['technique']['name']} {record.cell['runtime']['name']}": record for record in found}


def test_it_was_measured_in_its_own_environment(records: dict[str, Record]) -> None:
    """Nowhere else is its package. (A random model predicts worse than guessing: nothing else is wrong with it.)"""
    record = records["none right"]
    assert record.status is Status.DIVERGED, record.reason
    assert record.environment["engine"]["toy-engine"] == "1.0"
    assert record.fingerprint == environment.fingerprint(record.environment, record.cell["runtime"])
    assert record.fingerprint != records["none eager"].fingerprint
    assert record.realised["inspected"].startswith("files and memory alone")


def test_it_was_held_against_the_eager_model_first(records: dict[str, Record]) -> None:
    for name in ("none right", "rtn right"):
        realised = records[name].realised
        assert realised["greedy_within_rounding"] == 1
        assert realised["greedy_agreement"] > 0.9
        assert realised["parity_kl"] < 1e-3
    assert "greedy_agreement" not in records["none eager"].realised


def test_it_was_scored_and_timed_against_the_eager_model_in_the_same_rounds(records: dict[str, Record]) -> None:
    eager = records["none eager"]
    for name in ("none right", "rtn right"):
        record = records[name]
        assert record.realised["baseline_runtime"] == "eager"
        assert record.realised["timing"] == "interleaved"
        assert record.estimates["decode_speedup"].n == SMALL["rounds"]
        assert record.beside == eager.fingerprint
    assert records["none right"].estimates["kl_divergence"].value < 1e-3
    assert records["rtn right"].estimates["kl_divergence"].value > 0
    assert "baseline_runtime" not in eager.realised
    shown = table(list(records.values())).set_index("runtime")
    assert shown.loc["right", "board"].nunique() == 1
    assert shown.loc["right", "board"].iloc[0] == shown.loc["eager", "board"]


def test_an_export_that_is_not_the_artifact_is_invalid_and_never_timed(records: dict[str, Record]) -> None:
    record = records["none wrong"]
    assert (record.status, record.stage) == (Status.INVALID, "quality")
    assert "runtime=wrong chooses other tokens than the eager model" in record.reason
    assert "latency" not in record.stages


def test_where_its_environment_cannot_be_made_the_row_says_what_to_type(records: dict[str, Record]) -> None:
    record = records["none absent"]
    assert (record.status, record.stage) == (Status.UNSUPPORTED, "environment")
    assert "toy-engine==3.0" in record.reason
    assert "`nox -s runtimes -- absent`" in record.reason
    assert named("absent").existing() is None
