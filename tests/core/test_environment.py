"""Promise 14: unlike machines are never compared, and the field that differs is named."""

import copy
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from squeeze.artifacts.keys import library_versions
from squeeze.core import environment

# Libraries whose version a record keeps and a fingerprint leaves out.
OF_ONE_TECHNIQUE = [
    f"software.versions.{name}" for name in ("accelerate", "bitsandbytes", "gguf", "peft", "scipy", "torchao")
]


def runtime(device: str = "cpu", threads: int = 2, name: str = "eager") -> dict[str, Any]:
    return {"name": name, "device": device, "threads": threads}


@pytest.fixture
def here() -> dict[str, Any]:
    return {
        "hardware": {"cpu_model": "A", "affinity": [0, 1], "gpus": [{"name": "G"}]},
        "software": {"kernel": "6.1", "versions": {"torch": "2.13.0", "numpy": "2.2.6"}},
        "code": {"commit": "abc", "dirty": False},
        "state": {"load": [0.1, 0.2, 0.3]},
    }


def changed(value: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    result = copy.deepcopy(value)
    *parents, last = path.split(".")
    target = result
    for parent in parents:
        target = target[parent]
    target[last] = new
    return result


def leaves(value: dict[str, Any], path: str) -> Iterator[str]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from leaves(item, f"{path}.{name}")
        else:
            yield f"{path}.{name}"


@pytest.mark.promise(14)
def test_each_field_of_this_machine_changes_the_fingerprint_and_is_named() -> None:
    found = environment.describe()
    paths = [path for part in ("hardware", "software") for path in leaves(found[part], part)]
    paths = [path for path in paths if path not in OF_ONE_TECHNIQUE]
    assert len(paths) > 25
    for path in paths:
        other = changed(found, path, "something else")
        assert environment.fingerprint(other, runtime("cuda:0")) != environment.fingerprint(found, runtime("cuda:0"))
        assert environment.differences(found, other) == [path]


@pytest.mark.parametrize("path", OF_ONE_TECHNIQUE)
def test_a_library_of_one_technique_moves_no_other_row(here: dict[str, Any], path: str) -> None:
    """It is in the artifact keys of the rows that use it; a board's other rows stay comparable with those of before."""
    other = changed(here, path, "another version")
    assert environment.fingerprint(other, runtime()) == environment.fingerprint(here, runtime())
    assert environment.differences(here, other) == []


def test_every_technique_s_own_libraries_are_in_its_artifact_key() -> None:
    """What the fingerprint leaves out of DISTRIBUTIONS is named by the modules that use it, or by none of a build."""
    own = {path.removeprefix("software.versions.") for path in OF_ONE_TECHNIQUE}
    assert own == {*environment.DISTRIBUTIONS} - environment.MEASURING
    keyed = library_versions(
        ("squeeze.techniques.quantization.bitsandbytes", "squeeze.techniques.quantization.torchao")
    )
    assert {"bitsandbytes", "torchao"} <= keyed.keys()


@pytest.mark.promise(14)
def test_a_library_on_one_side_only_is_a_difference(here: dict[str, Any]) -> None:
    other = changed(here, "software.versions", {"torch": "2.13.0"})
    assert environment.differences(here, other) == ["software.versions.numpy"]
    assert environment.differences(other, here) == ["software.versions.numpy"]


@pytest.mark.parametrize("path", ["code.commit", "code.dirty", "state.load"])
def test_what_changes_by_the_minute_is_no_identity(here: dict[str, Any], path: str) -> None:
    other = changed(here, path, "something else")
    assert environment.fingerprint(other, runtime()) == environment.fingerprint(here, runtime())
    assert environment.differences(here, other) == []


def test_a_gpu_counts_only_for_what_runs_on_it(here: dict[str, Any]) -> None:
    other = changed(here, "hardware.gpus", [])
    assert environment.fingerprint(other, runtime()) == environment.fingerprint(here, runtime())
    assert environment.fingerprint(other, runtime("cuda:0")) != environment.fingerprint(here, runtime("cuda:0"))


def test_the_runtime_counts_and_its_label_does_not(here: dict[str, Any]) -> None:
    assert environment.fingerprint(here, runtime(threads=1)) != environment.fingerprint(here, runtime(threads=2))
    assert environment.fingerprint(here, runtime(name="a")) == environment.fingerprint(here, runtime(name="b"))


@pytest.mark.promise(14)
def test_the_packages_of_an_engine_count_and_are_named(here: dict[str, Any]) -> None:
    one, other = ({**here, "engine": {"an-engine": version}} for version in ("1.0", "1.1"))
    prints = {environment.fingerprint(each, runtime()) for each in (here, one, other)}
    assert len(prints) == 3
    assert environment.differences(one, other) == ["engine.an-engine"]
    assert environment.fingerprint({**here, "engine": {}}, runtime()) == environment.fingerprint(here, runtime())


def test_this_machine_is_described_the_same_twice() -> None:
    one, two = environment.describe(), environment.describe()
    assert environment.differences(one, two) == []
    assert one["software"]["versions"].keys() >= {"torch", "transformers", "numpy", "squeeze"}
    assert one["hardware"]["cores_logical"] >= 1
    assert json.loads(json.dumps(one)) == one


def test_nothing_names_the_host_or_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    text = json.dumps(environment.describe())
    assert socket.gethostname() not in text
    assert str(Path.home()) + "/" not in text
    assert str(Path(__file__).parents[2]) not in text


def test_thread_variables_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("SECRET_TOKEN", "hf_xyz")
    described = environment.software()["variables"]
    assert described["OMP_NUM_THREADS"] == "7"
    assert "SECRET_TOKEN" not in described


def test_torch_is_not_imported() -> None:
    script = "import sys, squeeze.core.environment as e; e.describe(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_throttling_is_counted_where_the_kernel_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "CPUS", tmp_path)
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    assert environment.state()["throttled"] == {"heat": None, "quota": None}
    for core, count in (("cpu0", 3), ("cpu1", 4)):
        (tmp_path / core / "thermal_throttle").mkdir(parents=True)
        (tmp_path / core / "thermal_throttle" / "core_throttle_count").write_text(f"{count}\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 12\nnr_periods 9\nnr_throttled 5\n")
    assert environment.state()["throttled"] == {"heat": 7, "quota": 5}


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text(
        "#!/bin/sh\necho 'A100, GPU-1, 550.1, 81920, 1410, 400.00'\necho 'A100, GPU-2, 550.1, 81920, 1410, 400.00'\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    gpus = environment.hardware()["gpus"]
    assert [gpu["uuid"] for gpu in gpus] == ["GPU-1", "GPU-2"]
    assert gpus[0]["driver_version"] == "550.1"


@pytest.mark.promise(17)
def test_asking_for_the_commit_writes_nothing_into_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``git status`` would refresh the index; killed meanwhile, it would leave the checkout locked."""
    (tmp_path / "squeeze").mkdir()
    file = tmp_path / "squeeze" / "__init__.py"
    file.write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    os.utime(file, (1, 1))  # the index is stale
    monkeypatch.setattr("squeeze.__file__", str(file))
    before = (tmp_path / ".git" / "index").read_bytes()
    found = environment.code()
    assert found["dirty"] is False
    assert len(found["commit"]) == 40
    assert (tmp_path / ".git" / "index").read_bytes() == before
