"""Environments of engines: made once by the real pip, before the core's packages, or said in words why not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from squeeze.core.cache import cache_root
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.core.interpreters import PACKAGES, environment_with
from squeeze.runtimes import environments
from tests.foreign import RIGHT, named, offer, requirements, sdist, wheel

TOY = {"name": "toy", "_target_": "toys:toy.Toy", "device": "cpu", "threads": 1}
EAGER = {"name": "eager", "_target_": "eager.Eager", "device": "cpu", "threads": 1}


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugin, its engine's package in a folder; a cache of its own."""
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    wheel(tmp_path / "index")
    return offer(tmp_path / "site", monkeypatch, {"toy": requirements(tmp_path / "index")})


def said(interpreter: Path, code: str) -> str:
    """What a program prints that runs with it as jobs do."""
    command = [str(interpreter), "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_with({}), check=True)
    return done.stdout.strip()


def test_a_runtime_says_where_it_lies_without_being_imported(toys: Path) -> None:
    found = environments.of(TOY)
    assert found is not None
    assert (found.name, found.requirements) == ("toy", toys / "runtimes" / "requirements" / "toy.txt")
    assert environments.of(EAGER) is None
    assert environments.of({**TOY, "_target_": "toys:gone.Gone"}) is None
    assert environments.of({"name": "of a record of before", "compile": True, "device": "cpu", "threads": 1}) is None
    assert "squeeze_toys.runtimes.toy" not in sys.modules
    assert environments.every()["toy"] == found


def test_it_has_its_own_packages_before_the_cores(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = named("toy").made()
    assert said(interpreter, "import sys, toy_engine; print(sys.prefix, toy_engine.TURN)").endswith(" 0")
    assert said(interpreter, "import pytest, numpy, squeeze; print(numpy.__version__)") == np.__version__
    core = tmp_path / "core"  # one whose packages are of the same names, and one that it alone has
    core.mkdir()
    (core / "toy_engine.py").write_text("TURN = 'of the core'\n")
    (core / "only_there.pth").write_text(f"{tmp_path / 'linked'}\n")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "editable.py").write_text("WORD = 'linked'\n")
    monkeypatch.setenv(PACKAGES, str(core))
    assert said(interpreter, "import toy_engine, editable; print(toy_engine.TURN, editable.WORD)") == "0 linked"


def test_it_is_made_once_and_again_when_it_is_damaged(toys: Path, tmp_path: Path) -> None:
    toy = named("toy")
    assert toy.existing() is None
    interpreter = toy.made()
    assert interpreter.is_relative_to(cache_root() / "environments")
    (tmp_path / "index" / "toy_engine-1.0-py3-none-any.whl").unlink()
    assert toy.made() == toy.existing() == interpreter
    next(interpreter.parents[1].rglob("toy_engine.py")).write_text("TURN = 7\n" + "#" * 9)
    assert toy.existing() is None
    wheel(tmp_path / "index")
    assert said(toy.made(), "import toy_engine; print(toy_engine.TURN)") == "0"


def test_other_packages_are_another_environment_and_a_comment_is_not(toys: Path, tmp_path: Path) -> None:
    toy, before = named("toy"), named("toy").made()
    pins = toy.pins()
    assert pins.keys() == {"toy-engine", "requirements"}
    text = toy.requirements.read_text()
    toy.requirements.write_text(f"# said otherwise\n\n{text}")
    assert (toy.pins(), toy.existing()) == (pins, before)
    wheel(tmp_path / "index", RIGHT, version="2.0")
    toy.requirements.write_text(text.replace("==1.0", "==2.0"))
    assert toy.existing() is None
    assert toy.pins()["toy-engine"] == "2.0"
    assert toy.pins()["requirements"] != pins["requirements"]


@pytest.mark.parametrize("line", ["toy-engine", "toy-engine>=1.0", "toy-engine~=1.0", "./toy"])
def test_a_package_without_an_exact_version_is_refused(toys: Path, line: str) -> None:
    toy = named("toy")
    toy.requirements.write_text(f"{line}\n")
    with pytest.raises(SqueezeError, match="no exact version, expected NAME==VERSION"):
        toy.made()


def test_a_failure_says_what_pip_said_and_what_to_type(toys: Path) -> None:
    toy = named("toy")
    toy.requirements.write_text(toy.requirements.read_text().replace("==1.0", "==3.0"))
    with pytest.raises(Unsupported, match=r"toy cannot be made: .*toy-engine==3\.0.*`nox -s runtimes -- toy`"):
        toy.made()
    assert toy.existing() is None
    assert not list((cache_root() / "environments").glob(".*.part"))


def test_a_runtime_says_how_its_packages_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))
    sdist(tmp_path / "index")
    flags = "def build_flags():\n    return {'TOY_FLAGS': 'fast'}\n"
    offer(tmp_path / "site", monkeypatch, {"toy": requirements(tmp_path / "index")}, flags)
    assert said(named("toy").made(), "import toy_engine; print(toy_engine.BUILT)") == "fast"


def test_what_is_built_otherwise_is_another_environment_and_another_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    flags = "import os\n\ndef build_flags():\n    return {'TOY_FLAGS': os.environ['ASKED']}\n"
    offer(tmp_path / "site", monkeypatch, {"toy": "toy-engine==1.0"}, flags)
    toy, found = named("toy"), []
    for asked in ("fast", "slow", "fast"):
        monkeypatch.setenv("ASKED", asked)
        found.append((toy.pins(), toy._key()))
    assert found[0] == found[2]
    assert found[0][0].keys() == {"toy-engine", "requirements", "build_flags"}
    assert found[0][0]["build_flags"] != found[1][0]["build_flags"]
    assert found[0][1] != found[1][1]


@pytest.mark.parametrize(
    "build", ["def build_flags():\n    raise ValueError('none')\n", "import nothing_there\n", "X = 1\n"]
)
def test_what_fails_to_say_how_is_refused(build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "site", monkeypatch, {"toy": requirements(tmp_path / "index")}, build)
    with pytest.raises(Unsupported, match=r"toy_build.build_flags\(\) fails .*cannot be built without"):
        named("toy").made()


def test_for_a_device_that_it_is_not_for_none_is_made(
    toys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of GPUs take gigabytes."""
    file = toys / "runtimes" / "toy.py"
    before, field = file.read_text(), 'environment: ClassVar[str] = "toy"'
    file.write_text(before.replace(field, f'{field}\n    only_on: ClassVar[str] = "cuda"'))
    environments._said.cache_clear()
    found = environments.of(TOY)
    assert found is not None
    found.check_for("cuda:1")
    with pytest.raises(Unsupported, match="toy runs on cuda alone, asked for cpu; use device=cuda, or runtime=eager"):
        found.check_for("cpu")
    named("toy").check_for("cpu")
    monkeypatch.setattr(environments, "default_device", lambda: "cpu")
    monkeypatch.setattr(environments, "every", lambda: {"toy": found})
    assert environments.main([]) == 0
    assert found.existing() is None
    assert environments.main(["toy"]) == 0, "it was asked for by name"
    assert capsys.readouterr().out == f"toy: {found.existing()}\n"


def test_engines_say_for_which_device_they_are() -> None:
    found = {name: each.only_on for name, each in environments.every().items()}
    assert {"llama_cpp": "cpu", "onnx": "cpu", "openvino": "cpu", "vllm": "cuda"}.items() <= found.items()


def test_a_process_of_another_environment_is_told_what_to_type(toys: Path) -> None:
    environments.check_here(EAGER)
    with pytest.raises(Unsupported, match=r"runtime=toy runs in the environment toy.*`nox -s runtimes -- toy`"):
        environments.check_here(TOY)
    code = f"from squeeze.runtimes import environments; environments.check_here({TOY!r}); print('here')"
    assert said(named("toy").made(), code) == "here"


def test_all_are_made_by_name_and_what_fails_stops_no_other(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert environments.main(["toys", "toy"]) == 1
    told = capsys.readouterr()
    assert "no runtime lies in an environment 'toys'; did you mean 'toy'?" in told.err
    assert told.out == f"toy: {named('toy').existing()}\n"
    assert environments.main(["toy"]) == 0
