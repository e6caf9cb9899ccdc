"""An installed package offers techniques, layers, runtimes and choices; nothing of it is imported until it is used."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.artifacts.build import build
from squeeze.artifacts.keys import artifact_key
from squeeze.core import environment, plugins
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.probes.memory import measured
from squeeze.records.store import RecordStore
from squeeze.request import steps
from squeeze.request.cell import Cell
from squeeze.request.choices import Choices
from squeeze.request.expand import cells
from squeeze.runner.attempt import Attempt
from tests.plugins import install

PACKAGE = "squeeze_mine"
TECHNIQUE = """
from dataclasses import dataclass

from squeeze.layers.contract import float_linears
from squeeze.models import architecture
from squeeze_mine.layers.halves import HalfLinear


@dataclass(frozen=True)
class Halve:
    bits: int

    def apply(self, subject, calibration):
        for name in float_linears(subject.model):
            architecture.replace(subject.model, name, HalfLinear.of(subject.model.get_submodule(name)))
        return subject.claiming(bits=self.bits)
"""
LAYER = """
import torch
from torch import nn


class HalfLinear(nn.Module):
    memory_real, compute_real, opaque_bytes, running_bits = True, False, 0, 16
    bias = None

    def __init__(self, in_features, out_features):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("stored", torch.empty(out_features, in_features, dtype=torch.float16))

    @classmethod
    def of(cls, linear):
        made = cls(linear.in_features, linear.out_features)
        made.stored = linear.weight.detach().half()
        return made

    def prepare(self): ...

    def dequantize(self):
        return self.stored.float()

    @staticmethod
    def header(model):
        return {}

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.stored.to(inputs.dtype))
"""
CHOICE = "family: quantization\nsteps:\n- _target_: mine:halving.Halve\n  bits: ${bits}\n"
FILES = {
    "techniques/halving.py": TECHNIQUE,
    "layers/halves.py": LAYER,
    "runtimes/fast.py": "class Fast: ...\n",
    "conf/technique/halves.yaml": CHOICE,
    "conf/config.yaml": "bits: 99\n",
    "conf/task/hostile.yaml": "task: hostile\n",
}
REQUEST = ["model=tiny_llama", "dtype=float32", "technique=halves", "bits=16", "device=cpu"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where distributions are installed; nothing of them stays imported."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    steps.find.cache_clear()
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
    steps.find.cache_clear()


@pytest.fixture
def mine(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin's package, installed."""
    folder = install(site, "mine", FILES, PACKAGE)
    monkeypatch.syspath_prepend(site)
    return folder


def test_a_plugin_is_found_without_importing_it(mine: Path) -> None:
    (found,) = plugins.installed().values()
    assert found == plugins.Plugin("mine", PACKAGE, mine, "squeeze-mine 1.0")
    assert plugins.modules("runtimes", found) == {f"{PACKAGE}.runtimes.fast": mine / "runtimes" / "fast.py"}
    named = plugins.find("runtimes", "mine:fast.Fast")
    assert (named.module, named.attribute, named.plugin) == (f"{PACKAGE}.runtimes.fast", "Fast", found)
    assert plugins.packages()[PACKAGE] == mine
    [cell] = cells(REQUEST)
    assert artifact_key(cell)
    assert PACKAGE not in sys.modules


def test_its_technique_and_its_layer_are_built_saved_and_loaded(mine: Path, tmp_path: Path) -> None:
    [cell] = cells(REQUEST)
    assert cell.label == "tiny_llama-halves-16"
    assert cell.technique["steps"] == [{"_target_": "mine:halving.Halve", "bits": 16}]
    build(cell, tmp_path / "artifact", measured)
    layers = artifact.describe(tmp_path / "artifact")["layers"]
    assert {spec["_target_"] for spec in layers.values()} == {"mine:halves.HalfLinear"}
    loaded = artifact.load(tmp_path / "artifact")
    plain = artifact.load(tmp_path / "artifact", prepare=False)
    ids = torch.arange(24).reshape(2, 12)
    assert torch.equal(loaded.model(ids)[0], plain.model(ids)[0])
    assert type(loaded.model.model.layers[0].mlp.up_proj).__module__ == f"{PACKAGE}.layers.halves"


def test_only_its_layers_that_keep_the_contract_are_loaded(mine: Path, tmp_path: Path) -> None:
    [cell] = cells(REQUEST)
    build(cell, tmp_path / "artifact", measured)
    path = tmp_path / "artifact" / artifact.DESCRIPTION
    text = path.read_text()
    for other in ("mine:halves.nn", "mine:halving.Halve", "mine:fast.Fast", "yours:halves.HalfLinear"):
        path.write_text(text.replace("mine:halves.HalfLinear", other))
        with pytest.raises(IntegrityError, match="no layer"):
            artifact.load(tmp_path / "artifact")


def test_its_version_and_its_source_are_in_the_key_and_its_version_in_the_record(
    mine: Path, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [cell] = cells(REQUEST)
    [plain] = cells(["model=tiny_llama", "technique=none"])
    before = artifact_key(cell)
    with monkeypatch.context() as patch:
        patch.setattr(plugins, "versions", lambda _: {"mine": "squeeze-mine 1.1"})
        assert artifact_key(cell) != before
    place = environment.describe()
    store = RecordStore(tmp_path)
    assert Attempt.begin(cell, store, place).place["plugins"] == {"mine": "squeeze-mine 1.0"}
    assert Attempt.begin(cell, store, place).row.fingerprint == Attempt.begin(plain, store, place).row.fingerprint
    assert "plugins" not in Attempt.begin(plain, store, place).place
    assert plugins.versions(json.loads(json.dumps(cell.to_json()))) == {"mine": "squeeze-mine 1.0"}
    assert plugins.versions({"_target_": "gone:gptq.GPTQ"}) == {"gone": "absent"}
    other = install(site / "next", "mine", {**FILES, "layers/halves.py": f"{LAYER}\n# reworded\n"}, PACKAGE)
    monkeypatch.syspath_prepend(other.parent)
    _forget_hashes()
    assert artifact_key(cell) != before


def test_the_version_of_a_runtime_is_in_the_fingerprint(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = environment.describe()
    ours, theirs = ({"_target_": target, "device": "cpu"} for target in ("eager.Eager", "mine:fast.Fast"))
    before = [environment.fingerprint(place, runtime) for runtime in (ours, theirs)]
    monkeypatch.setattr(plugins, "versions", lambda node: {"mine": "squeeze-mine 1.1"} if node is theirs else {})
    after = [environment.fingerprint(place, runtime) for runtime in (ours, theirs)]
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_its_choices_stand_beside_squeezes_and_its_config_and_tasks_are_not_read(mine: Path, tmp_path: Path) -> None:
    choices = Choices.within(None)
    assert {"halves", "gptq"} <= set(choices.names("technique"))
    assert choices.scalars["bits"] == 4
    assert cells(["technique=halves", "model=tiny_llama"])[0].axis("bits") == 4
    with pytest.raises(SqueezeError, match="'hostile' is not allowed"):
        cells(["model=tiny_llama", "protocol.tasks=[hostile]"])
    (tmp_path / "own" / "technique").mkdir(parents=True)
    (tmp_path / "own" / "technique" / "halves.yaml").write_text(CHOICE)
    with pytest.raises(SqueezeError, match="rename yours"):
        cells(REQUEST, tmp_path / "own")


def test_what_is_not_installed_is_refused_in_one_line(site: Path) -> None:
    step = {"_target_": "mine:halving.Halve", "bits": 4}
    cell = Cell({"source": "random:llama", "dtype": "float32"}, {"name": "t", "family": "pruning", "steps": [step]})
    with pytest.raises(SqueezeError, match="no plugin 'mine' is installed; there is none to choose from"):
        artifact_key(cell)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("squeeze_absent", r"squeeze-odd 1\.0 offers the plugin 'odd' = 'squeeze_absent'; expected"),
        ("json.decoder", "a package's top-level name"),
        ("this", "a package's top-level name"),
    ],
)
def test_an_entry_point_that_names_no_package_is_one_line(
    site: Path, monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    install(site, "odd", {})
    (site / "squeeze_odd-1.0.dist-info" / "entry_points.txt").write_text(f"[squeeze.plugins]\nodd = {value}\n")
    monkeypatch.syspath_prepend(site)
    with pytest.raises(SqueezeError, match=reason) as caught:
        plugins.installed()
    assert "\n" not in str(caught.value)


def test_two_distributions_of_one_name_are_refused(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "one", {})
    install(site, "two", {})
    (site / "squeeze_two-1.0.dist-info" / "entry_points.txt").write_text("[squeeze.plugins]\none = two\n")
    monkeypatch.syspath_prepend(site)
    with pytest.raises(SqueezeError, match=r"'one' is offered by squeeze-(one|two) 1\.0 and squeeze-(one|two) 1\.0"):
        plugins.installed()


def test_a_file_name_that_two_folders_have_is_refused(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "mine", {"techniques/a/svd.py": "", "techniques/b/svd.py": ""}, PACKAGE)
    monkeypatch.syspath_prepend(site)
    with pytest.raises(SqueezeError, match=r"may be squeeze_mine\.techniques\.a\.svd or .*; rename one"):
        plugins.find("techniques", "mine:svd.SVD")


def test_a_class_is_named_as_it_is_found() -> None:
    assert plugins.name_of(plugins.Plugin) == "plugins.Plugin"
    with pytest.raises(SqueezeError, match=r"torch\.nn.*no installed plugin offers the package 'torch'"):
        plugins.name_of(torch.nn.Linear)


def _forget_hashes() -> None:
    from squeeze.artifacts import keys

    keys.code_version.cache_clear()
    keys.library_versions.cache_clear()
