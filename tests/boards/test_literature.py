"""Published numbers are joined with their true counterparts only, and whoever has none is told why."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squeeze.boards.literature import Measured, Published, counterparts, join, numbers
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
        ({"bits": 3}, "published with bits 4, measured with 3"),
        ({"group_size": 128}, "published with group_size null, measured with 128"),
        ({"symmetric": True, "bits": 3}, "published with bits 4, symmetric false, measured with 3, true"),
        ({"text": {**TEXT, "window": 1024}}, "published with perplexity.window 2048, measured with 1024"),
        (
            {"text": {**TEXT, "corpus": "wikipedia_eval"}},
            "published with perplexity.corpus wikitext2, measured with wikipedia_eval",
        ),
        ({"text": {**TEXT, "tokens": 8192}}, "published with perplexity.tokens null, measured with 8192"),
    ],
)
def test_unlike_rows_are_never_joined_and_say_why(unlike: dict[str, Any], why: str) -> None:
    joined = join([rounded(**unlike)], [NUMBER])
    assert joined.comparisons == []
    [(_, said)] = joined.alone
    assert said == why
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
        assert why == "published with bits 4, measured with 3"


C4 = {"name": "c4", "corpus": "c4", "samples": 128, "window": 2048, "seed": 0}
SOLVER = {**STEP, "act_order": False, "static_groups": False, "damping": 0.01, "damping_of": "mean"}
SOLVED = Published("hf:facebook/opt-125m", "gptq", 31.12, 0.03, "A paper", SOLVER, TEXT, {**C4})


def solved(calibration: dict[str, Any] = C4, name: str = "gptq", transformers: str = "5.23", **step: Any) -> Record:
    protocol = {**PROTOCOL, "perplexity": TEXT, "perplexity_ood": {"corpus": "speeches"}}
    subject = cell(name, "quantization", {**SOLVER, **step}, model=HUB, protocol=protocol, calibration={**calibration})
    environment = {"software": {"versions": {"transformers": transformers}}}
    return record(subject, {"perplexity": Estimate(31.0)}, environment=environment)


@pytest.mark.parametrize(
    ("unlike", "why"),
    [
        ({"damping": 0.3}, "published with damping 0.01, measured with 0.3"),
        ({"damping_of": "own"}, "published with damping_of mean, measured with own"),
        ({"static_groups": True}, "published with static_groups false, measured with true"),
        ({"act_order": True}, "published with act_order false, measured with true"),
        (
            {"calibration": {**C4, "corpus": "wikipedia"}},
            "published with calibration.corpus c4, measured with wikipedia",
        ),
        ({"calibration": {**C4, "samples": 32}}, "published with calibration.samples 128, measured with 32"),
        ({"calibration": {**C4, "window": 512}}, "published with calibration.window 2048, measured with 512"),
        ({"transformers": "5.17"}, "published with harness.transformers 5.23, measured with 5.17"),
    ],
)
def test_a_solver_is_joined_only_with_its_own_settings_calibration_and_harness(
    unlike: dict[str, Any], why: str
) -> None:
    published = [replace(SOLVED, harness={"transformers": "5.23"})]
    for name in ("gptq", "gptq_paper"):
        assert [each.published for each in join([solved(name=name)], published).comparisons] == published
    joined = join([solved(**unlike)], published)
    assert joined.comparisons == []
    assert [said for _, said in joined.alone] == [why]


def test_a_row_that_is_sliced_by_another_text_is_no_counterpart() -> None:
    """SliceGPT's directions are those of the text that it reads."""
    table_4 = {"corpus": "wikitext2_train", "samples": 128, "window": 2048}

    def sliced(calibration: dict[str, Any]) -> Record:
        where = {"model": HUB, "protocol": {**PROTOCOL, "perplexity": TEXT}, "calibration": calibration}
        return record(cell("slicegpt", "pruning", {"hidden_kept": 0.75}, **where), {"perplexity": Estimate(38.0)})

    [comparison] = join([sliced(table_4)], numbers()).comparisons
    assert (comparison.published.value, comparison.agrees) == (38.25, True)
    joined = join([sliced({**table_4, "corpus": "c4"})], numbers())
    assert joined.comparisons == []
    assert [why for _, why in joined.alone] == ["published with calibration.corpus wikitext2_train, measured with c4"]


def test_what_was_not_published_is_not_compared_and_named() -> None:
    step = {"bits": 4, "group_size": None}
    bare = replace(SOLVED, step=step, calibration={"corpus": "c4"})
    [comparison] = join([solved(calibration={**C4, "samples": 32}, damping=0.3)], [bare]).comparisons
    assert comparison.unstated == (
        *("symmetric", "act_order", "static_groups", "damping", "damping_of"),
        *("calibration.samples", "calibration.window", "harness"),
    )
    [whole] = join([rounded()], [replace(NUMBER, harness={"lm-eval": None}, calibration={**C4})]).comparisons
    assert whole.unstated == (), "what is not calibrated has no calibration to compare"


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


CALIBRATION = ("corpus", "samples", "window")


def test_the_sweep_measures_the_counterpart_of_each_number_and_nothing_else() -> None:
    """But for the text of calibration: of C4 not as much is pinned as the papers read, of others nothing.

    Three rows have two numbers each, from sources that differ.
    """
    published = numbers()
    as_calibrated = [replace(number, calibration={}) for number in published]
    planned = cells(["sweep=paper"])
    found = [number for each in planned for number in counterparts(Measured(each), as_calibrated)[0]]
    twice = ["none", "sparsegpt_2_4", "slicegpt"]
    assert len(planned) + len(twice) == len(found) == len(published)
    assert all(found.count(number) == 1 for number in as_calibrated)
    several = [each.technique["name"] for each in planned if len(counterparts(Measured(each), as_calibrated)[0]) > 1]
    assert sorted(several) == sorted(twice)
    assert all(each.axis("static_groups") for each in planned if each.axis("act_order")), "else gptq refuses the order"


def test_the_sweep_says_of_each_number_without_counterpart_that_its_calibration_is_another() -> None:
    published = numbers()
    reasons = {
        each.label: counterparts(Measured(each), published)[1]
        for each in cells(["sweep=paper"])
        if not counterparts(Measured(each), published)[0]
    }
    assert set(reasons.values()) == {
        "published with calibration.samples 128, measured with 32",
        "published with calibration.samples 128, measured with 16",
        "published with calibration.corpus pile, measured with c4",
        "published with calibration.corpus wikitext2_train, measured with c4",
        "published with calibration.corpus wikitext2_train, calibration.samples 128, measured with c4, 32",
    }
    calibrated = ("gptq_paper", "awq", "sparsegpt", "wanda", "slicegpt")
    assert all(any(name in label for name in calibrated) for label in reasons)


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
    assert value("opt-125m", "sparsegpt_2_4") == [60.7, 45.07]
    assert value("opt-125m", "magnitude_2_4") == [341.5]
    assert value("opt-125m", "slicegpt", hidden_kept=0.9) == [29.48]
    assert value("opt-125m", "slicegpt", hidden_kept=0.8) == [34.12, 34.53]
    assert value("opt-125m", "slicegpt", hidden_kept=0.7) == [44.17]
    assert value("SmolLM2-135M", "gptq", act_order=True) == [24.18]
    assert value("SmolLM2-135M", "gptq", act_order=False) == [27.91]
    assert value("TinyLlama-1.1B-Chat-v1.0", "bitsandbytes_nf4") == [8.32]
    assert value("Llama-2-7b-hf", "none") == [5.47]
    assert value("Llama-2-7b-hf", "none", window=4096) == [5.12]
    assert Counter(number.model.rpartition("/")[2] for number in numbers()) == {
        "opt-125m": 28, "SmolLM2-135M": 10, "TinyLlama-1.1B-Chat-v1.0": 6, "Llama-2-7b-hf": 11,
    }  # fmt: skip
    assert all(0 < number.tolerance <= 0.15 and number.source for number in numbers())


@pytest.mark.parametrize(
    "text", ["- {source: A, model: m, protocol: {}}", "- {source: A, model: m, protocol: {}, numbers: [{valu: 1}]}"]
)
def test_a_file_of_another_layout_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "numbers.yaml").write_text(text)
    with pytest.raises(SqueezeError, match=r"expected a list of source.*most step, calibration and harness"):
        numbers(tmp_path / "numbers.yaml")


def test_every_model_is_one_that_can_be_chosen() -> None:
    chosen = ["opt_125m", "smollm2_135m_hub", "tinyllama_1b", "llama2_7b"]
    sources = {each.model["source"] for each in cells([f"model={','.join(chosen)}"])}
    assert {number.model for number in numbers()} == sources
