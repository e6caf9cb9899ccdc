"""Estimates follow from samples: those of a record that ``assemble`` made are all borne out, changed ones are found."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squeeze.audit.recompute import disagreements, estimates
from squeeze.records.estimates import block_losses, known
from squeeze.records.record import SCHEMA, Record
from squeeze.records.store import RecordStore, read

RESULTS = Path(__file__).parents[2] / "results"
SMOKE, EARLIER = RESULTS / "published" / "smoke", RESULTS / "archive" / "smoke"
ROW = next((EARLIER / "records").glob("*-rtn-4-g64-*.json"))
WITH_INTERVALS = ("kl_divergence", "top1_agreement")  # which older records do not have


@pytest.fixture(scope="module")
def row() -> tuple[Record, dict[str, Any]]:
    """A row with tasks, of an older schema, with the intervals and blocks that one of today's would have."""
    record = read(ROW)
    with np.load(io.BytesIO(RecordStore(EARLIER).samples(record).read_bytes()), allow_pickle=False) as stored:
        kept = dict(stored)
    newer = {name: one for name, one in known(estimates(record, kept)).items() if name not in record.estimates}
    newer |= {name: one for name, one in known(estimates(record, kept)).items() if name.endswith("_delta")}
    newer |= {name: known(estimates(record, kept))[name] for name in WITH_INTERVALS}
    blocks = block_losses(kept["token_nll"])
    return replace(record, schema=SCHEMA, estimates={**record.estimates, **newer}, block_nll=blocks), kept


def test_figures_are_what_their_samples_give(row: tuple[Record, dict[str, Any]]) -> None:
    assert list(disagreements(*row)) == []
    for name in WITH_INTERVALS:
        assert row[0].estimates[name].value == pytest.approx(read(ROW).estimates[name].value, rel=1e-4)


def test_published_figures_are_what_their_samples_give() -> None:
    """Every row of the smoke run, with nothing filled in: turns, rounds that were added, the noise floor."""
    store = RecordStore(SMOKE)
    found = {}
    for record in store.records():
        with np.load(store.samples(record), allow_pickle=False) as arrays:
            found[record.attempt] = list(disagreements(record, dict(arrays)))
    assert len(found) == 12
    assert not any(found.values())


CHANGES = {
    "ttft_ms": 1.001,
    "decode_tokens_per_s": 0.999,
    "itl_p95_ms": 1.001,
    "perplexity": 1.001,
    "kl_divergence": 0.999,
    "top1_agreement": 1.001,
    "acc_sciq": 1.02,
}


def test_changed_figures_are_found(row: tuple[Record, dict[str, Any]]) -> None:
    record, arrays = row
    moved = {
        name: replace(record.estimates[name], value=record.estimates[name].value * by) for name, by in CHANGES.items()
    }
    moved["perplexity_delta"] = replace(record.estimates["perplexity_delta"], high=9.0)
    moved["decode_speedup"] = replace(record.estimates["decode_speedup"], low=None)
    moved["ttft_speedup"] = replace(record.estimates["ttft_speedup"], p_value=0.5)
    moved["acc_piqa_delta"] = replace(record.estimates["acc_piqa_delta"], n=99)
    left_out = {name: one for name, one in record.estimates.items() if name != "acc_lambada"}
    changed = replace(record, estimates={**left_out, **moved}, block_nll=(*record.block_nll[:-1], 9.0))
    found = list(disagreements(changed, arrays))
    assert {what.split()[0] for what in found} == {*moved, "acc_lambada", "block_nll"}
    assert any(what.startswith("acc_lambada is missing, its samples give ") for what in found)


def test_of_an_older_schema_the_values_that_it_has_are_compared(row: tuple[Record, dict[str, Any]]) -> None:
    record, arrays = row
    moved = {"perplexity_delta": replace(record.estimates["perplexity_delta"], high=9.0)}
    older = {name: one for name, one in record.estimates.items() if name != "acc_lambada"} | moved
    assert list(disagreements(replace(record, schema=1, estimates=older), arrays)) == []
    older["perplexity"] = replace(older["perplexity"], value=1.001 * older["perplexity"].value)
    assert len(list(disagreements(replace(record, schema=1, estimates=older), arrays))) == 1


def test_intervals_are_drawn_with_the_protocols_seed(row: tuple[Record, dict[str, Any]]) -> None:
    record, arrays = row
    cell = {**record.cell, "protocol": {**record.cell["protocol"], "seed": 1}}
    [what] = disagreements(replace(record, cell=cell), arrays)
    assert what.startswith("perplexity_delta is ")


def test_samples_that_do_not_fit_together_are_an_error(row: tuple[Record, dict[str, Any]]) -> None:
    record, arrays = row
    with pytest.raises(ValueError, match="zip"):
        list(disagreements(record, {**arrays, "token_s_b1": arrays["token_s_b1"][:3]}))
