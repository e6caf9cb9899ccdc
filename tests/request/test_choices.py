"""The choices that come with squeeze, and a user's own beside them or in their place."""

import shutil

import pytest

from squeeze.core import paths
from squeeze.core.errors import SqueezeError
from squeeze.probes.first_tokens import longest
from squeeze.records.estimates import FEWEST
from squeeze.request.expand import cells
from squeeze.request.schema import known_tasks
from tests.planted import TECHNIQUES, place, planned


def test_the_smoke_sweep_is_the_main_job():
    found = cells(["sweep=smoke"])
    assert len(found) >= 12
    assert {cell.model["name"] for cell in found} == {"smollm2_135m"}
    assert {cell.protocol["name"] for cell in found} == {"smoke"}
    names = [cell.technique["name"] for cell in found]
    assert {name: names.count(name) for name in ("none", "rtn", "magnitude")} == {"none": 2, "rtn": 5, "magnitude": 1}
    assert {cell.model["dtype"] for cell in found if cell.technique["name"] == "none"} == {"float32", "bfloat16"}
    rtn = [(cell.axis("bits"), cell.axis("group_size")) for cell in found if cell.technique["name"] == "rtn"]
    assert rtn == [(8, 64), (4, 64), (3, 64), (2, 64), (4, None)]


@pytest.mark.parametrize("sweep", ["training", "distillation"])
def test_what_a_sweep_trains_lies_beside_its_control_and_what_it_began_from(sweep):
    found = cells([f"sweep={sweep}"])
    trained = {cell.training for cell in found} - {None}
    assert trained == {cell.training for cell in found if cell.is_control}
    names = {cell.technique["name"] for cell in found}
    assert {"none", "layer_drop", "distil"} <= names
    (untrained,) = (
        cell for cell in found if cell.technique["name"] == "layer_drop" and cell.axis("layers_kept") == 0.5
    )
    for cell in (cell for cell in found if cell.technique["name"].startswith("distil")):
        assert cell.technique["steps"][0] == untrained.technique["steps"][0]
    assert len({cell.label for cell in found}) == len(found)


def test_temperature_and_share_are_swept_together_and_the_text_alone_once():
    distilled = [cell for cell in cells(["sweep=distillation"]) if cell.technique["name"] == "distil"]
    pairs = [(cell.axis("alpha"), cell.axis("temperature")) for cell in distilled]
    assert sorted(pairs) == [(0, 1), (0.5, 1), (0.5, 2), (0.5, 4), (1, 1), (1, 2), (1, 4)]


def test_the_sweep_of_classifiers_shows_what_training_buys():
    found = cells(["sweep=classifier"])
    trained = [cell for cell in found if cell.training is not None]
    assert len({cell.training for cell in trained}) == 1, "all of one schedule have one control"
    assert {(cell.technique["name"], cell.axis("alpha")) for cell in trained} == {
        ("finetune_classifier", None),
        ("distil_classifier", 1),
        ("distil_classifier", 0),
        ("distil_classifier_hidden", 1),
        ("distil_classifier_int8", 1),
    }
    [student] = [cell.technique["steps"] for cell in found if cell.technique["name"] == "layer_drop"]
    learning = [cell.technique["steps"][0] for cell in trained if cell.technique["name"] == "distil_classifier"]
    assert learning == [student[0]] * 2, "what learns begins as the one that does not"


def test_the_sweep_of_removals_has_each_family_beside_its_controls():
    found = cells(["sweep=removal"])
    assert len(found) >= 24
    assert len({cell.label for cell in found}) == len(found)
    assert {cell.technique["family"] for cell in found} >= {"baseline", "control", "pruning", "low_rank", "combined"}
    assert {cell.training for cell in found if cell.is_control} == {cell.training for cell in found} - {None}


def beside(group, name):
    """What must be chosen with a choice, where the defaults do not suit it: classifiers are asked other things."""
    if group == "model" and "kind: classifier" in (paths.conf() / group / f"{name}.yaml").read_text():
        return ["protocol=classify"]
    return ["model=tiny_bert_classifier"] if (group, name) == ("protocol", "classify") else []


@pytest.mark.parametrize("group", ["model", "technique", "calibration", "runtime", "protocol", "sweep"])
def test_every_choice_that_comes_with_squeeze_can_be_made(group):
    names = [path.stem for path in (paths.conf() / group).glob("*.yaml")]
    assert names
    for name in names:
        assert cells([f"{group}={name}", *beside(group, name)])


def test_protocols_measure_what_they_promise():
    smoke, standard, paper = (cells([f"protocol={name}"])[0].protocol for name in ("smoke", "standard", "paper"))
    assert [protocol["rounds"] for protocol in (smoke, standard, paper)] == [8, 8, 12]
    assert (paper["perplexity"]["window"], paper["perplexity"]["stride"], paper["items"]) == (2048, 2048, None)
    for protocol in (smoke, standard, paper):
        assert protocol["latency"]["decode_tokens"] >= 32
        assert protocol["latency"]["prefill_repeats"] >= 4
        assert protocol["most_rounds"] >= protocol["rounds"]
        assert set(protocol["tasks"]) <= set(known_tasks())


def test_the_serving_protocol_has_a_curve_batches_and_tokens_enough_for_a_99th_percentile():
    [cell] = cells(["protocol=serving"])
    latency, curve = cell.protocol["latency"], cell.protocol["ttft_curve"]
    assert latency["batch_sizes"] == [1, 2, 4, 8, 16]
    assert latency["decode_tokens"] >= FEWEST[99]
    assert (min(curve["prompt_tokens"]), max(curve["prompt_tokens"])) == (32, 4096)
    assert curve["prompt_tokens"] == sorted(curve["prompt_tokens"])
    for positions in (1024, 2048):  # of many models: what comes next below them is read there, too
        assert positions / 2 < max(n for n in curve["prompt_tokens"] if longest(n) <= positions)
    assert "ttft_curve" not in cells(["protocol=smoke"])[0].protocol, "cells of other protocols keep their keys"


def test_a_choice_of_ones_own_may_not_hide_one_of_squeezes(own):
    place(own, "technique", "none", "family: baseline\nsteps: []")
    with pytest.raises(SqueezeError, match="rename yours"):
        planned(own, "technique=none")


def test_a_folder_with_its_own_config_stands_alone(own, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(paths.conf(), alone)
    for path in (alone / "technique").glob("*.yaml"):
        path.unlink()
    place(alone, "technique", "only", TECHNIQUES["prune"])
    config = alone / "config.yaml"
    config.write_text(
        config.read_text().replace("technique: none", "technique: only").replace("smollm2_135m", "tiny_gpt2")
    )
    assert [cell.label for cell in cells(["protocol=smoke"], alone)] == ["tiny_gpt2-only-s0.5"]
