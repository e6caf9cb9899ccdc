import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from squeeze import targets
from squeeze.cell import Cell
from squeeze.choices import packaged_conf
from squeeze.config import cells
from squeeze.errors import SqueezeError
from squeeze.validation import known_tasks

SOURCE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Round:
    bits: int
    group_size: int | None
    symmetric: bool
    def apply(self, subject, calibration): ...

@dataclass(frozen=True)
class Prune:
    sparsity: float
    seed: int = 0
    def apply(self, subject, calibration): ...
"""

TECHNIQUES = {
    "round": "family: quantization\nsteps:\n- _target_: squeeze.techniques.planted.Round\n  bits: ${bits}\n"
    "  group_size: ${group_size}\n  symmetric: ${symmetric}\n",
    "prune": "family: pruning\nsteps:\n- _target_: squeeze.techniques.planted.Prune\n  sparsity: ${sparsity}\n",
    "learned": "family: pruning\ncalibrated: true\nsteps:\n- _target_: squeeze.techniques.planted.Prune\n"
    "  sparsity: ${sparsity}\n",
}


def place(folder, group, name, text):
    path = folder / group / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's folder of choices: three techniques, whose module is planted."""
    (tmp_path / "planted.py").write_text(SOURCE)
    monkeypatch.setattr(targets, "_folder", lambda: tmp_path)
    targets.find.cache_clear()
    for name, text in TECHNIQUES.items():
        place(tmp_path, "technique", name, text)
    yield tmp_path
    targets.find.cache_clear()


def labels(found):
    return [cell.label.removeprefix("tiny_llama-") for cell in found]


def planned(own, *overrides):
    return cells(["model=tiny_llama", "protocol=smoke", *overrides], own)


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


def test_only_a_trained_technique_is_asked_for_perplexity_out_of_its_domain(own):
    place(own, "technique", "tuned", TECHNIQUES["prune"].replace("steps:", "trained: true\nsteps:"))
    untrained, trained = planned(own, "technique=prune,tuned")
    assert trained.protocol["perplexity_ood"]["corpus"] == "speeches"
    assert trained.protocol == {**untrained.protocol, "perplexity_ood": trained.protocol["perplexity_ood"]}
    assert trained.common_protocol == untrained.protocol == untrained.common_protocol
    assert trained.baseline("float32").protocol == trained.protocol
    assert set(trained.technique) == {"name", "family", "steps"}
    with pytest.raises(SqueezeError, match=r"protocol.perplexity_ood.window.*at most its tokens, 2048"):
        planned(own, "technique=tuned", "protocol.perplexity_ood.window=4096")


def trained_choices():
    found = {path.stem: yaml.safe_load(path.read_text()) for path in (packaged_conf() / "technique").glob("*.yaml")}
    return sorted(name for name, choice in found.items() if choice.get("trained"))


def test_the_control_is_trained_as_every_row_that_carries_it():
    planned = cells(["model=smollm2_135m", "protocol=smoke", f"technique={','.join(trained_choices())}"])
    [control] = [cell for cell in planned if cell.is_control]
    assert len(planned) > 1
    assert {cell.training for cell in planned} == {control.training} != {None}


def test_what_is_trained_otherwise_is_no_control():
    axes = ("training_steps=64,8", "learning_rate=0.0004,0.1", "dtype=bfloat16,float32", "calibration=wikipedia,c4")
    planned = cells(["model=smollm2_135m", "protocol=smoke", "technique=finetune", "protocol.rounds=5,7", *axes])
    assert len({cell.training for cell in planned}) == len(planned) == 32


def test_only_what_is_trained_asks_for_a_control(own):
    place(own, "technique", "tuned", TECHNIQUES["prune"].replace("steps:", "trained: true\nsteps:"))
    untrained, trained = planned(own, "technique=prune,tuned")
    assert untrained.training is trained.baseline("float32").training is None
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
        "protocol.rounds=3",
        "protocol.latency={decode_tokens:4}",
        "model.seed=5",
    )
    assert cell.technique["steps"][0]["seed"] == 7
    assert cell.protocol["rounds"] == 3
    assert (cell.protocol["latency"]["decode_tokens"], cell.protocol["latency"]["prompt_tokens"]) == (4, 128)
    assert cell.model["seed"] == 5
    assert len(planned(own, "protocol.rounds=3,5,7")) == 3


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
    assert labels(planned(own, "technique=glob(pr*)")) == ["prune-s0.5"]
    assert [cell.replicate for cell in planned(own, "replicate=range(0,12)")] == list(range(12))


def test_a_sweep_unites_its_grids_and_the_command_line_wins(own):
    place(own, "sweep", "mine", "common: model=tiny_llama protocol=smoke bits=8\n"
          "grids:\n- technique=none\n- technique=round\n- technique=round bits=4,3 group_size=32\n")  # fmt: skip
    assert labels(cells(["sweep=mine"], own)) == ["none-bfloat16", "round-8-g64", "round-4-g32", "round-3-g32"]
    assert labels(cells(["sweep=mine", "bits=2"], own)) == ["none-bfloat16", "round-2-g64", "round-2-g32"]
    assert labels(cells(["sweep=mine", "technique=none"], own)) == ["none-bfloat16"]
    (cell,) = cells(["sweep=mine", "technique=none", "protocol=paper"], own)
    assert cell.protocol["name"] == "paper"


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ("technique=rond", "unknown technique 'rond'; did you mean 'round'?"),
        ("technique=../model/gpt2", "unknown technique '../model/gpt2'"),
        ("technique=3", "technique: 3 is not allowed; expected a name"),
        ("techniqe=round", "unknown option 'techniqe'; did you mean 'technique'?"),
        ("bitz=3", "unknown option 'bitz'; did you mean 'bits'?"),
        ("protcol.rounds=3", "unknown option 'protcol'; did you mean 'protocol'?"),
        ("protocol.ronds=3", "unknown option 'protocol.ronds'; did you mean 'rounds'?"),
        ("+protocol.ronds=3", "unknown field 'protocol.ronds'; did you mean 'rounds'?"),
        ("sweep=smok", "unknown sweep 'smok'; did you mean 'smoke'?"),
        ("~technique", "technique is always chosen"),
        ("~replicate bits=4 bits=8", "'bits' is given twice"),
        ("bits=0", "bits: 0 is not allowed; expected an integer from 1 to 16"),
        ("bits=0123", "bits: '0123' is not allowed"),
        ("bits=4.0", "bits: 4.0 is not allowed"),
        ("bits=true", "bits: True is not allowed"),
        ("bits='4'", "bits: '4' is not allowed"),
        ("bits=null", "bits: None is not allowed"),
        ("technique=none bits=-1", "bits: -1 is not allowed"),
        ("group_size=0", "group_size: 0 is not allowed; expected a positive integer, or null"),
        ("symmetric=off", "symmetric: 'off' is not allowed; expected true or false"),
        ("symmetric=1", "symmetric: 1 is not allowed; expected true or false"),
        ("sparsity=1.0", "sparsity: 1.0 is not allowed; expected a number from 0 to below 1"),
        ("sparsity=nan", "sparsity: nan is not allowed"),
        ("dtype=fp16", "dtype: 'fp16' is not allowed; expected one of float32, bfloat16, float16"),
        ("dtype=[float32]", "dtype: ['float32'] is not allowed"),
        ("threads=0", "threads: 0 is not allowed"),
        ("device=tpu", "device: 'tpu' is not allowed; expected auto, cpu, cuda or cuda:N"),
        ("replicate=-1", "replicate: -1 is not allowed"),
        ("bits=${oc.env:SQUEEZE_SECRET}", "bits: '${oc.env:SQUEEZE_SECRET}' is not allowed"),
        ("+note=x technique.name=${note}x", "technique.name: '${note}x' is refused"),
        ("technique.name=${oc.env:SQUEEZE_SECRET}", "technique.name: '${oc.env:SQUEEZE_SECRET}' is refused"),
        (
            "+note=${oc.env:SQUEEZE_SECRET} technique.name=${note}",
            "technique.name: '${oc.env:SQUEEZE_SECRET}' is not allowed",
        ),
        ("model.seed=1" + "0" * 400, "expected a number below 2**63"),
        ("sparsity=1" + "0" * 400, "expected a number from 0 to below 1"),
        ("sparsity=inf", "sparsity: inf is not allowed"),
        ("+model.source=x", "'model.source' is there already"),
        ("model.source=http://x", "model.source: 'http://x' is not allowed"),
        ("model.dtype=int8", "model.dtype: 'int8' is not allowed"),
        ("model=gpt2 model.revision=main", "model.revision: 'main' is not allowed; expected a commit of 40 hex digits"),
        ("model=gpt2 ~model.revision", "must be pinned to a commit of 40 hex digits"),
        ("protocol.rounds=0", "protocol.rounds: 0 is not allowed; expected an integer of at least 1"),
        ("protocol.perplexity.window=8193", "expected at most its tokens, 8192"),
        ("protocol.perplexity.stride=2048", "expected at most its window, 1024"),
        ("protocol.tasks=[lambda]", "protocol.tasks: 'lambda' is not allowed; did you mean 'lambada'?"),
        ("protocol.tasks=[speeches]", "protocol.tasks: 'speeches' is not allowed"),
        ("protocol.perplexity.corpus=c4", "protocol.perplexity.corpus: 'c4' is not allowed; choose from: speeches"),
        ("protocol.tasks=[sciq,sciq]", "expected a list of different tasks"),
        ("protocol.latency.batch_sizes=[]", "expected a list of different positive integers"),
        ("protocol.ranked_by=perplexty", "did you mean 'perplexity'?"),
        (
            "protocol.limits.build.seconds=0",
            "protocol.limits.build.seconds: 0 is not allowed; expected a number above 0",
        ),
        ("~protocol.limits.build", "protocol.limits.build is missing; expected the fields seconds, bytes"),
        ("protocol.latency=fast", "protocol.latency: 'fast' is not allowed; expected the fields prompt_tokens"),
        ("technique.steps.0.bits=99", "technique.steps.0.bits: 99 is not allowed"),
        ("+technique.steps.0.bitz=3", "technique.steps.0: Round has no field 'bitz'; did you mean 'bits'?"),
        ("~technique.steps.0.bits", "technique.steps.0: Round needs bits"),
        ("technique.steps.0._target_=os.system", "technique.steps.0._target_: 'os.system' is refused"),
        ("technique.steps.0=3", "technique.steps.0: 3 is not allowed; expected _target_"),
        ("bits=1,2,3,4 replicate=range(0,90000)", "360000 points; expected at most 100000"),
    ],
)
def test_a_mistake_is_one_line_that_names_field_value_and_what_is_allowed(own, monkeypatch, overrides, reason):
    monkeypatch.setenv("SQUEEZE_SECRET", "hunter2")
    texts = overrides.split()
    keys = {text.lstrip("+~").partition("=")[0] for text in texts}
    defaults = {"model": "tiny_llama", "technique": "round", "protocol": "smoke"}
    texts += [f"{group}={name}" for group, name in defaults.items() if group not in keys]
    with pytest.raises(SqueezeError) as caught:
        cells(texts, own)
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message
    assert "hunter2" not in message


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("family: x\nsteps: []\nnote: ${oc.env:SQUEEZE_SECRET}", "is refused"),
        ("family: x\nsteps: []\nbits: 0123", "ambiguous"),
        ("family: x\nfamily: y\nsteps: []", "duplicate"),
        ("family: x\nsteps: []\nnote: !!python/name:os.system", "the tag"),
        ("family: x\nsteps: []\nflavour: 3", "unknown field 'technique.flavour'"),
        ("family: x", "technique.steps is missing"),
        ("family: x\nsteps: ???", "technique.steps: '???' is not allowed"),
        ("family: x\nsteps:\n- _target_: os.system\n  command: echo", "'os.system' is refused"),
        (
            "family: x\nsteps:\n- _target_: squeeze.techniques.planted.Prune\n  sparsity: ${rank}",
            "'${rank}' is refused",
        ),
        ("defaults: [round]\nfamily: x\nsteps: []", "without a defaults list"),
        ("- 1", "expected a mapping"),
        ("[", "not readable as YAML"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(own, monkeypatch, text, reason):
    monkeypatch.setenv("SQUEEZE_SECRET", "hunter2")
    place(own, "technique", "bad", text)
    with pytest.raises(SqueezeError) as caught:
        planned(own, "technique=bad")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert planned(own, "technique=round"), "a bad file disturbs nobody else"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("grids: technique=none", "expected 'grids', a list"),
        ("grids: []", "expected 'grids', a list"),
        ("grids: [3]", "expected 'grids', a list"),
        ("grid:\n- technique=none", "expected 'grids', a list"),
        ("grids:\n- technique", "sweep 'bad': 'technique' is not an override"),
        ("grids:\n- sweep=smoke", "cannot name another sweep"),
        ("grids:\n- technique=rond", "did you mean 'round'?"),
    ],
)
def test_a_bad_sweep_is_refused_in_one_line(own, text, reason):
    place(own, "sweep", "bad", text)
    with pytest.raises(SqueezeError) as caught:
        cells(["sweep=bad"], own)
    assert reason in str(caught.value)


def test_a_choice_of_ones_own_may_not_hide_one_of_squeezes(own):
    place(own, "technique", "none", "family: baseline\nsteps: []")
    with pytest.raises(SqueezeError, match="rename yours"):
        planned(own, "technique=none")


def test_a_folder_with_its_own_config_stands_alone(own, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(packaged_conf(), alone)
    for path in (alone / "technique").glob("*.yaml"):
        path.unlink()
    place(alone, "technique", "only", TECHNIQUES["prune"])
    config = alone / "config.yaml"
    config.write_text(
        config.read_text().replace("technique: none", "technique: only").replace("smollm2_135m", "tiny_gpt2")
    )
    assert [cell.label for cell in cells(["protocol=smoke"], alone)] == ["tiny_gpt2-only-s0.5"]


@pytest.mark.parametrize(
    ("found", "instead"),
    [
        ("- runtime: eager", "- override hydra/launcher: x"),
        ("- runtime: eager", ""),
        ("- runtime: eager", "- runtime: [eager]"),
        ("defaults:", "hydra: {searchpath: [pkg://antigravity]}\ndefaults:"),
        ("defaults:", "- defaults:"),
        ("  - _self_", "  - /model/tiny_gpt2"),
    ],
)
def test_a_config_that_composes_anything_else_is_refused(tmp_path, found, instead):
    config = tmp_path / "config.yaml"
    text = (packaged_conf() / "config.yaml").read_text()
    assert found in text
    config.write_text(text.replace(found, instead))
    with pytest.raises(SqueezeError, match=r"config\.yaml"):
        cells([], tmp_path)


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


@pytest.mark.parametrize("group", ["model", "technique", "calibration", "runtime", "protocol", "sweep"])
def test_every_choice_that_comes_with_squeeze_can_be_made(group):
    names = [path.stem for path in (packaged_conf() / group).glob("*.yaml")]
    assert names
    for name in names:
        assert cells([f"{group}={name}"])


def test_protocols_measure_what_they_promise():
    smoke, standard, paper = (cells([f"protocol={name}"])[0].protocol for name in ("smoke", "standard", "paper"))
    assert [protocol["rounds"] for protocol in (smoke, standard, paper)] == [5, 7, 10]
    assert (paper["perplexity"]["window"], paper["perplexity"]["stride"], paper["items"]) == (2048, 2048, None)
    for protocol in (smoke, standard, paper):
        assert protocol["latency"]["decode_tokens"] >= 32
        assert protocol["latency"]["prefill_repeats"] >= 5
        assert set(protocol["tasks"]) <= set(known_tasks())


def test_ten_thousand_cells_are_planned_within_five_seconds(own):
    start = time.process_time()
    found = planned(own, "technique=prune", "dtype=float32,bfloat16", "replicate=range(0,5000)")
    assert len({cell.key for cell in found}) == 10_000
    assert time.process_time() - start < 5


def test_planning_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from squeeze.config import cells; assert cells(['model=tiny_llama', 'technique=none']);"
        "print([name for name in ('torch', 'transformers', 'squeeze.techniques') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
