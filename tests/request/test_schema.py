"""What may be asked for, in overrides and in files: anything else is refused in one line."""

import pytest

from squeeze.core import paths
from squeeze.core.errors import SqueezeError
from squeeze.request.expand import cells
from tests.planted import place, planned


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
        ("model=minilm_sst2 ~model.fine_tuning", "model.fine_tuning is missing, the source is trained:pypi:"),
        ("+model.fine_tuning=3", "model.fine_tuning: 3 is not allowed; expected the fields corpus, epochs"),
        ("model=minilm_sst2 model.kind=encoder", "model.kind: 'encoder' is not allowed; only a classifier is"),
        ("model=minilm_sst2 model.fine_tuning.epochs=0", "model.fine_tuning.epochs: 0 is not allowed"),
        ("model=minilm_sst2 model.fine_tuning.corpus=c4", "model.fine_tuning.corpus: 'c4' is not allowed"),
        ("model=minilm_sst2 ~model.wheel_sha256", "must be pinned to a sha256 of 64 hex digits"),
        ("protocol.rounds=0", "protocol.rounds: 0 is not allowed; expected a positive even integer, such as 8"),
        ("protocol.rounds=7", "protocol.rounds: 7 is not allowed; expected a positive even integer, such as 8"),
        ("protocol.rounds=14", "protocol.most_rounds: 12 is not allowed; expected at least its rounds, 14"),
        ("protocol.generations.prompts=0", "protocol.generations.prompts: 0 is not allowed; expected an integer"),
        ("protocol.generations.tokens=null", "protocol.generations.tokens: None is not allowed"),
        ("~protocol.generations.tokens", "protocol.generations.tokens is missing"),
        ("protocol.perplexity.window=8193", "expected at most its tokens, 8192"),
        ("protocol.perplexity.stride=2048", "expected at most its window, 1024"),
        ("protocol.tasks=[lambda]", "protocol.tasks: 'lambda' is not allowed; did you mean 'lambada'?"),
        ("protocol.tasks=[speeches]", "protocol.tasks: 'speeches' is not allowed"),
        ("protocol.perplexity.corpus=c4", "protocol.perplexity.corpus: 'c4' is not allowed; choose from: speeches"),
        ("protocol.tasks=[sciq,sciq]", "expected a list of different tasks"),
        ("protocol.latency.batch_sizes=[]", "expected a list of different positive integers"),
        ("protocol=serving protocol.ttft_curve.repeats=3", "protocol.ttft_curve.repeats: 3 is not allowed; expected a"),
        (
            "protocol=serving protocol.ttft_curve.prompt_tokens=[32,32]",
            "expected a list of different positive integers",
        ),
        ("protocol=serving protocol.ttft_curve.prompt_tokens=[]", "expected a list of different positive integers"),
        (
            "protocol=serving ~protocol.ttft_curve.repeats",
            "protocol.ttft_curve.repeats is missing; expected a positive",
        ),
        ("protocol=serving +protocol.ttft_curve.batch=2", "unknown field 'protocol.ttft_curve.batch'"),
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
            "family: x\nsteps:\n- _target_: planted:methods.Prune\n  sparsity: ${radius}",
            "'${radius}' is refused",
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


@pytest.mark.parametrize("name", ["O'Brien", "a b,c", "[x]", "{y}", "#z", "é"])
def test_a_folder_of_choices_may_have_any_name(tmp_path, name):
    place(tmp_path / name, "technique", "mine", "family: baseline\nsteps: []\n")
    (cell,) = cells(["technique=mine", "model=tiny_llama"], tmp_path / name)
    assert cell.label == "tiny_llama-mine-bfloat16"


def test_a_folder_that_hydra_would_read_as_another_is_refused(tmp_path):
    (tmp_path / "${oc.env:HOME}").mkdir()
    with pytest.raises(SqueezeError, match="rename the folder"):
        cells([], tmp_path / "${oc.env:HOME}")


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
    text = (paths.conf() / "config.yaml").read_text()
    assert found in text
    config.write_text(text.replace(found, instead))
    with pytest.raises(SqueezeError, match=r"config\.yaml"):
        cells([], tmp_path)
