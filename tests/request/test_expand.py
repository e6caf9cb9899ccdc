import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from squeeze.core import paths
from squeeze.core.errors import SqueezeError
from squeeze.request.cell import Cell
from squeeze.request.expand import cells
from tests.planted import place, planned
from tests.snippets import CLASSIFIERS_ONLY


def labels(found):
    return [cell.label.removeprefix("tiny_llama-") for cell in found]


def test_a_grid_is_crossed_in_the_order_in_which_it_is_written(own):
    found = planned(own, "technique=round,prune", "bits=8,3", "sparsity=0.2,0.5")
    assert labels(found) == ["round-8-g64", "round-3-g64", "prune-s0.2", "prune-s0.5"]
    assert [(cell.axis("bits"), cell.axis("group_size"), cell.axis("symmetric")) for cell in found[:2]] == [
        (8, 64, True),
        (3, 64, True),
    ]


def test_a_scalar_that_a_technique_does_not_read_makes_no_second_cell(own):
    assert len(planned(own, "technique=prune", "bits=8,4,3,2", "group_size=64,null", "double_quant=true,false")) == 1
    assert len(planned(own, "technique=none", "bits=8,4", "dtype=float32,bfloat16")) == 2
    assert len(planned(own, "technique=round", "group_size=64,null")) == 2


def test_everything_is_concrete_and_plain(own):
    (cell,) = planned(own, "technique=round")
    assert cell.runtime["device"] in {"cpu", "cuda"}
    assert cell.runtime["threads"] >= 1
    text = json.dumps(cell.to_json())
    assert "${" not in text
    assert Cell.from_json(json.loads(text)).key == cell.key


def test_the_device_and_the_threads_can_be_chosen(own):
    (cell,) = planned(own, "device=cuda:1", "threads=3")
    assert (cell.runtime["device"], cell.runtime["threads"]) == ("cuda:1", 3)


def test_only_a_calibrated_technique_has_a_calibration(own):
    uncalibrated, calibrated = planned(own, "technique=prune,learned", "calibration=c4")
    assert uncalibrated.calibration == {}
    assert calibrated.calibration["corpus"] == "c4"
    assert set(calibrated.technique) == {"name", "family", "steps"}
    assert uncalibrated.key != calibrated.key


def test_only_a_calibrated_technique_is_asked_for_perplexity_out_of_its_domain(own):
    uncalibrated, calibrated = planned(own, "technique=prune,learned")
    assert calibrated.protocol["perplexity_ood"]["corpus"] == "speeches"
    assert calibrated.protocol == {**uncalibrated.protocol, "perplexity_ood": calibrated.protocol["perplexity_ood"]}
    assert calibrated.common_protocol == uncalibrated.protocol == uncalibrated.common_protocol
    assert calibrated.baseline("float32").protocol == calibrated.protocol
    with pytest.raises(SqueezeError, match=r"protocol.perplexity_ood.window.*at most its tokens, 2048"):
        planned(own, "technique=learned", "protocol.perplexity_ood.window=4096")


def choices(group):
    return {path.stem: yaml.safe_load(path.read_text()) for path in (paths.conf() / group).glob("*.yaml")}


@pytest.mark.parametrize("protocol", sorted(set(choices("protocol")) - {"classify"}))
def test_every_calibrated_row_is_scored_out_of_its_domain(protocol):
    names = sorted(name for name, choice in choices("technique").items() if choice.get("calibrated"))
    assert {"gptq", "awq", "smoothquant", "wanda", "qat"} <= set(names)
    for cell in cells([f"protocol={protocol}", f"technique={','.join(names)}"]):
        text = cell.protocol["perplexity_ood"]["corpus"]
        assert text not in (cell.calibration["corpus"], cell.protocol["perplexity"]["corpus"])


@pytest.mark.promise(16)
@pytest.mark.parametrize("corpus", ["wikipedia_eval", "speeches", "wikitext2"])
@pytest.mark.parametrize("technique", ["gptq", "qat", "finetune"])
def test_what_is_scored_is_not_calibrated_on(technique, corpus):
    with pytest.raises(
        SqueezeError, match=rf"'{corpus}' is refused, perplexity is measured on it; .* c4, sst2_train, wikipedia_train"
    ):
        cells([f"technique={technique}", "model=smollm2_135m", f"calibration.corpus={corpus}"])


def trained_choices():
    steps = {name: choice["steps"] for name, choice in choices("technique").items()}
    trained = {name for name, each in steps.items() if any("training_steps" in step for step in each)}
    return sorted(trained - CLASSIFIERS_ONLY)


def test_the_control_is_trained_as_every_row_that_carries_it():
    planned = cells(["model=smollm2_135m", "protocol=smoke", f"technique={','.join(trained_choices())}"])
    [control] = [cell for cell in planned if cell.is_control]
    assert len(planned) > 1
    assert {cell.training for cell in planned} == {control.training} != {None}


def test_so_is_the_control_of_classifiers():
    planned = cells(["model=tiny_llama", "calibration=snippets", f"technique={','.join(sorted(CLASSIFIERS_ONLY))}"])
    [control] = [cell for cell in planned if cell.is_control]
    assert len(planned) > 1
    assert {cell.training for cell in planned} == {control.training} != {None}


def test_what_is_trained_otherwise_is_no_control():
    axes = ("training_steps=64,8", "learning_rate=0.0004,0.1", "dtype=bfloat16,float32", "calibration=wikipedia,c4")
    planned = cells(["model=smollm2_135m", "protocol=smoke", "technique=finetune", "protocol.rounds=6,8", *axes])
    assert len({cell.training for cell in planned}) == len(planned) == 32


def test_only_what_is_trained_asks_for_a_control():
    rounded, calibrated, trained = cells(["model=smollm2_135m", "protocol=smoke", "technique=rtn,gptq,qat"])
    assert rounded.training is calibrated.training is trained.baseline("float32").training is None
    assert trained.training is not None


def test_the_uncompressed_cell_is_the_baseline_of_the_others(own):
    (none,) = planned(own, "technique=none", "dtype=float32")
    (other,) = planned(own, "technique=round", "dtype=bfloat16")
    assert other.baseline("float32").key == none.key


def test_deep_overrides_reach_every_group(own):
    (cell,) = planned(
        own,
        "technique=prune",
        "+technique.steps.0.seed=7",
        "protocol.rounds=4",
        "protocol.latency={decode_tokens:4}",
        "model.seed=5",
    )
    assert cell.technique["steps"][0]["seed"] == 7
    assert cell.protocol["rounds"] == 4
    assert (cell.protocol["latency"]["decode_tokens"], cell.protocol["latency"]["prompt_tokens"]) == (4, 128)
    assert cell.model["seed"] == 5
    assert len(planned(own, "protocol.rounds=4,6,8")) == 3


@pytest.mark.promise(3)
def test_keys_depend_on_values_and_not_on_the_order_of_a_file(own):
    (before,) = planned(own, "technique=round")
    path = own / "technique" / "round.yaml"
    data = yaml.safe_load(path.read_text())
    reordered = {**dict(reversed(data.items())), "steps": [dict(reversed(step.items())) for step in data["steps"]]}
    path.write_text(yaml.safe_dump(reordered, sort_keys=False))
    (after,) = planned(own, "technique=round")
    assert after.key == before.key
    changed = [
        "bits=3",
        "group_size=32",
        "symmetric=false",
        "dtype=float32",
        "replicate=1",
        "protocol.seed=1",
        "threads=77",
    ]
    assert len({before.key, *(planned(own, "technique=round", text)[0].key for text in changed)}) == 1 + len(changed)


def test_equal_numbers_make_equal_cells(own):
    (cell,) = planned(own, "technique=prune", "sparsity=0,0.0,0e5")
    assert type(cell.axis("sparsity")) is float


def test_glob_and_range_sweep(own):
    assert labels(planned(own, "technique=glob(pru*)")) == ["prune-s0.5"]
    assert [cell.replicate for cell in planned(own, "replicate=range(0,12)")] == list(range(12))


def test_a_sweep_unites_its_grids_and_the_command_line_wins(own):
    place(own, "sweep", "mine", "common: model=tiny_llama protocol=smoke bits=8\n"
          "grids:\n- technique=none\n- technique=round\n- technique=round bits=4,3 group_size=32\n")  # fmt: skip
    assert labels(cells(["sweep=mine"], own)) == ["none-bfloat16", "round-8-g64", "round-4-g32", "round-3-g32"]
    assert labels(cells(["sweep=mine", "bits=2"], own)) == ["none-bfloat16", "round-2-g64", "round-2-g32"]
    assert labels(cells(["sweep=mine", "technique=none"], own)) == ["none-bfloat16"]
    (cell,) = cells(["sweep=mine", "technique=none", "protocol=paper"], own)
    assert cell.protocol["name"] == "paper"


def test_ten_thousand_cells_are_planned_within_five_seconds(own):
    start = time.process_time()
    found = planned(own, "technique=prune", "dtype=float32,bfloat16", "replicate=range(0,5000)")
    assert len({cell.key for cell in found}) == 10_000
    assert time.process_time() - start < 5


def test_planning_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from squeeze.request.expand import cells; assert cells(['model=tiny_llama', 'technique=none']);"
        "print([name for name in ('torch', 'transformers', 'squeeze.techniques') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
