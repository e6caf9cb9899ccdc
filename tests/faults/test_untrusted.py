"""Promise 15 from the outside: hostile input, given to the command line, neither runs nor leaks anything.

Each case would create the file `canary` if what it brings along were run, or show SECRET if it were read.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from squeeze import cli
from squeeze.artifacts.build import build
from squeeze.core.errors import SqueezeError
from squeeze.probes.memory import measured
from squeeze.request.cell import Cell
from tests.faults.sweeps import RUNTIME
from tests.tiny import tiny_subject

SECRET = "hf_hunter2"
GGUF_OF_43_BYTES = b"GGUF" + struct.pack("<IQQ", 3, 1, 2**60) + bytes(19)

RTN = "rtn.RoundToNearest"
TECHNIQUES = {
    "a target": "steps:\n- {_target_: os.system, command: touch canary}",
    "an alias of a target": "steps:\n- {_target_: rtn.os.system, command: touch canary}",
    "an alias of an old target": "steps:\n- {_target_: squeeze.techniques.rtn.os.system, command: touch canary}",
    "an alias in a family": "steps:\n- {_target_: squeeze.techniques.quantization.rtn.torch, command: touch canary}",
    "a path": "steps:\n- {_target_: ../../hostile.Technique}",
    "a plugin that nobody installed": "steps:\n- {_target_: 'hostile:hostile.Technique'}",
    "a module beside it": "steps:\n- {_target_: hostile.Technique}",
    "a target of posix": "steps:\n- {_target_: posix.system, command: touch canary}",
    "hydra's own": "steps:\n- {_target_: hydra.utils.call, config: {_target_: os.system, command: touch canary}}",
    "a partial": "steps:\n- {_target_: functools.partial, _args_: [os.system, touch canary], _partial_: true}",
    "a nested target": f"steps:\n- _target_: {RTN}\n  bits: {{_target_: os.system}}",
    "a YAML tag": "steps: !!python/object/apply:os.system [touch canary]",
    "a YAML name": "steps:\n- !!python/name:os.system",
    "a YAML alias": "x: &a [1]\nsteps: *a",
    "an environment variable": "steps: []\ntitle: ${oc.env:HF_TOKEN}",
    "a decoded secret": "steps: []\ntitle: ${oc.decode:${oc.env:HF_TOKEN}}",
    "a created node": "steps: []\ntitle: ${oc.create:{a:1}}",
    "hydra's place": "steps: []\ntitle: ${hydra:runtime.cwd}",
}


@pytest.fixture(autouse=True)
def bystanders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", SECRET)


def assert_nothing_was_run_or_shown(folder: Path, shown: str) -> None:
    assert not list(folder.rglob("canary"))
    assert SECRET not in shown
    for path in folder.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.promise(15)
def test_hostile_configurations_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], figure: Callable[[str], None]
) -> None:
    (tmp_path / "conf" / "technique").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "conf", tmp_path / "conf" / "technique"):
        (place / "hostile.py").write_text("from pathlib import Path\nPath('canary').touch()\nclass Technique: ...\n")
    for name, text in TECHNIQUES.items():
        (tmp_path / "conf" / "technique" / "hostile.yaml").write_text(f"name: hostile\nfamily: pruning\n{text}\n")
        for command in ("list", "run"):
            arguments = [command, "technique=hostile", "model=tiny_llama", "--config-dir", str(tmp_path / "conf")]
            assert cli.main(arguments) == cli.USAGE, name
            shown = capsys.readouterr()
            assert shown.out == ""
            assert shown.err.startswith("error: "), name
            assert shown.err.count("\n") == 1
            assert_nothing_was_run_or_shown(tmp_path, shown.err)
    figure(f"{len(TECHNIQUES)} hostile configurations: each refused in one line, nothing run, no secret shown")


class Runs:
    """A pickle that runs a command when it is read."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("canary"),)  # type: ignore[return-value]


def pickled_weights(folder: Path) -> str:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs()))
    (folder / "model.safetensors").unlink()
    return "is pickled and could run code"


def pickle_called_safetensors(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Runs()))
    return "not a readable model"


def pickle_in_torchs_own_format(folder: Path) -> str:
    buffer = io.BytesIO()
    torch.save(Runs(), buffer)
    (folder / "model.safetensors").write_bytes(buffer.getvalue())
    return "not a readable model"


def remote_code(folder: Path) -> str:
    """transformers would import modeling_hostile.py, were it told to trust it."""
    (folder / "modeling_hostile.py").write_text("from pathlib import Path\nPath('canary').touch()\n")
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "modeling_hostile.Config", "AutoModelForCausalLM": "modeling_hostile.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "hostile", "auto_map": auto_map}))
    return "not a readable model"


def names_that_climb(folder: Path) -> str:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return "names ../outside.safetensors, expected files of its own folder only"


def small_gguf(folder: Path) -> str:
    (folder / "model.gguf").write_bytes(GGUF_OF_43_BYTES)
    return "header promises at least"


HOSTILE_MODELS = [
    pickled_weights, pickle_called_safetensors, pickle_in_torchs_own_format, remote_code, names_that_climb, small_gguf,
]  # fmt: skip


@pytest.mark.promise(15)
def test_hostile_models_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], figure: Callable[[str], None]
) -> None:
    subject = tiny_subject("llama")
    for spoil in HOSTILE_MODELS:
        folder = tmp_path / spoil.__name__
        subject.model.save_pretrained(folder)
        subject.tokenizer.save_pretrained(folder)
        words = spoil(folder)
        source = folder / "model.gguf" if spoil is small_gguf else folder
        model = {"name": "hostile", "source": f"file:{source}", "kind": "causal_lm", "dtype": "float32"}
        with pytest.raises(SqueezeError, match=words) as refusal:
            build(
                Cell(model, {"name": "none", "family": "baseline", "steps": []}, runtime=RUNTIME),
                folder / "out",
                measured,
            )
        assert "\n" not in str(refusal.value)
        assert_nothing_was_run_or_shown(tmp_path, str(refusal.value) + str(capsys.readouterr()))
    figure(f"{len(HOSTILE_MODELS)} hostile models (pickles, remote code, ../ names, a GGUF of 43 bytes): none is read")
