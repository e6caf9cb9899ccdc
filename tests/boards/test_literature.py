"""Published numbers are joined with their true counterparts only, and whoever has none is told why."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squeeze.boards.literature import Published, counterparts, join, numbers
from squeeze.core.errors import SqueezeError
from squeeze.records.record import Estimate, Record, Status
from squeeze.request.expand import cells
from tests.fabricated import MODEL, PROTOCOL, cell, record, smoke_records

HUB = {**MODEL, "name": "opt_125m", "source": "hf:facebook/opt-125m"}
TEXT = {"corpus": "wikitext2", "tokens": None, "window": 2048, "stride": 2048}
STEP = {"bits": 4, "group_size": None, "symmetric": False}
NUMBER = Published("hf:facebook/opt-125m", "rtn", 40.0, 0.02, "A paper", STEP, TEXT)


def rounded(perplexity: float = 40.0, text: dict[str, Any] = TEXT, model: dict[str, Any] = HUB, **step: Any) -> Record:
    protocol = {**PROTOCOL, "perplexity": text}
    subject = cell("rtn", "quantization", {**STEP, **step}, model=model, protocol=protocol)
    return record(subject, {"perplexity": Estimate(perplexity)})


@pytest.mark.parametrize(
    ("perplexity", "agrees"), [(40.0, True), (40.79, True), (39.21, True), (40.81, False), (39.19, False)]
)
def test_a_counterpart_is_judged_by_its_tolerance(perplexity: float, agrees: bool) -> None:
    joined = join([rounded(perplexity)], [NUMBER])
    [comparison] = joined.comparisons
    assert (comparison.measured, comparison.published, comparison.agrees) == (perplexity, NUMBER, agrees)
    assert comparison.ratio == pytest.approx(perplexity / 40)
    assert joined.alone == joined.unmeasured == []


@pytest.mark.parametrize(
    ("unlike", "why"),
    [
        ({"model": {**HUB, "source": "pypi:opt==1"}}, "nothing is published here of pypi:opt==1"),
        ({"bits": 3}, "the nearest published number has bits 4; this row has 3"),
        ({"group_size": 128}, "has group_size null; this row has 128"),
        ({"symmetric": True}, "has symmetric false; this row has true"),
        ({"text": {**TEXT, "window": 1024}}, "has window 2048; this row has 1024"),
        ({"text": {**TEXT, "corpus": "wikipedia_eval"}}, "has corpus wikitext2; this row has wikipedia_eval"),
        ({"text": {**TEXT, "tokens": 8192}}, "has tokens null; this row has 8192"),
    ],
)
def test_unlike_rows_are_never_joined_and_say_why(unlike: dict[str, Any], why: str) -> None:
    joined = join([rounded(**unlike)], [NUMBER])
    assert joined.comparisons == []
    [(_, said)] = joined.alone
    assert why in said
    assert joined.unmeasured == [NUMBER]


def test_another_technique_of_the_same_fields_is_not_joined() -> None:
    other = cell("gptq", "quantization", STEP, model=HUB, protocol={**PROTOCOL, "perplexity": TEXT})
    joined = join([record(other, {"perplexity": Estimate(40.0)})], [NUMBER])
    assert joined.comparisons == []
    assert joined.alone == [(other, "nothing is published here of gptq on this model")]


def test_the_nearest_number_explains() -> None:
    far = replace(NUMBER, step={"bits": 8, "group_size": 64, "symmetric": True})
    for published in ([far, NUMBER], [NUMBER, far]):
        [(_, why)] = join([rounded(bits=3)], published).alone
        assert why == "the nearest published number has bits 4; this row has 3"


def test_names_are_labels_only() -> None:
    assert join([rounded(model={**HUB, "name": "mine"})], [NUMBER]).comparisons
    protocol = {**PROTOCOL, "name": "wikitext2", "perplexity": {**TEXT, "window": 512}}
    renamed = cell("rtn", "quantization", STEP, model=HUB, protocol=protocol)
    assert not join([record(renamed, {"perplexity": Estimate(40.0)})], [NUMBER]).comparisons


def test_failed_and_replaced_attempts_are_not_compared() -> None:
    first = rounded(99.0)
    newer = replace(rounded(40.0), attempt="newer", finished="2026-02-01T00:00:00+00:00")
    assert [comparison.measured for comparison in join([newer, first], [NUMBER]).comparisons] == [40.0]
    failed = replace(first, status=Status.DIVERGED)
    assert join([failed], [NUMBER]) == join([], [NUMBER])
    unscored = replace(first, estimates={"decode_ms": Estimate(9.0)})
    assert join([unscored, *smoke_records()], [NUMBER]).comparisons == []
    assert join([unscored], [NUMBER]) == join([], [NUMBER])


def test_the_embedded_model_has_no_counterpart() -> None:
    joined = join(smoke_records(), numbers())
    assert joined.comparisons == []
    assert {why for _, why in joined.alone} == {f"nothing is published here of {MODEL['source']}"}
    assert joined.unmeasured == numbers()


def test_the_sweep_measures_the_counterpart_of_each_number_and_nothing_else() -> None:
    published = numbers()
    planned = cells(["sweep=paper"])
    found = [number for each in planned for number in counterparts(each, published)[0]]
    assert len(planned) == len(found) == len(published)
    assert all(found.count(number) == 1 for number in published)


def test_the_numbers_are_those_that_were_published() -> None:
    def value(model: str, technique: str, window: int = 2048, **step: Any) -> list[float]:
        return [
            number.value
            for number in numbers()
            if number.model.endswith(model) and number.technique == technique and number.protocol["window"] == window
            if all(number.step.get(name, "absent") == wanted for name, wanted in step.items())
        ]

    assert value("opt-125m", "rtn", bits=4, group_size=None) == [37.28]
    assert value("opt-125m", "gptq", bits=4, group_size=None) == [31.12]
    assert value("opt-125m", "awq", bits=3) == [36.96]
    assert value("opt-125m", "wanda_2_4") == [81.6]
    assert value("SmolLM2-135M", "gptq", act_order=True) == [24.18]
    assert value("SmolLM2-135M", "gptq", act_order=False) == [27.91]
    assert value("TinyLlama-1.1B-Chat-v1.0", "bitsandbytes_nf4") == [8.32]
    assert value("Llama-2-7b-hf", "none") == [5.47]
    assert value("Llama-2-7b-hf", "none", window=4096) == [5.12]
    assert Counter(number.model.rpartition("/")[2] for number in numbers()) == {
        "opt-125m": 20, "SmolLM2-135M": 10, "TinyLlama-1.1B-Chat-v1.0": 6, "Llama-2-7b-hf": 11,
    }  # fmt: skip
    assert all(0 < number.tolerance <= 0.15 and number.source for number in numbers())


@pytest.mark.parametrize(
    "text", ["- {source: A, model: m, protocol: {}}", "- {source: A, model: m, protocol: {}, numbers: [{valu: 1}]}"]
)
def test_a_file_of_another_layout_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "numbers.yaml").write_text(text)
    with pytest.raises(SqueezeError, match="expected a list of source, model, protocol and numbers"):
        numbers(tmp_path / "numbers.yaml")


def test_every_model_is_one_that_can_be_chosen() -> None:
    chosen = ["opt_125m", "smollm2_135m_hub", "tinyllama_1b", "llama2_7b"]
    sources = {each.model["source"] for each in cells([f"model={','.join(chosen)}"])}
    assert {number.model for number in numbers()} == sources
