"""Members come out of pinned wheels verified, whole, and from inside the wheel only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.sources import wheels
from tests.wheelhouse import REQUIREMENT, build_wheel, serve, sha256_of

TEXT = b"in the beginning"
MEMBERS = {"toy/text.txt": TEXT, "toy/model/config.json": b"{}", "toy/model/deep/weights.safetensors": b"1234"}
OTHER = sha256_of(b"something else")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    wheel = build_wheel(tmp_path / "index", MEMBERS)
    serve(wheel.parent, monkeypatch)
    return sha256_of(wheel.read_bytes())


def test_a_file_is_taken_out_and_served_from_the_cache_ever_after(
    wheel_sha256: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = wheels.member(REQUIREMENT, wheel_sha256, "toy/text.txt", sha256_of(TEXT))
    assert path.read_bytes() == TEXT
    serve(tmp_path / "nowhere", monkeypatch)
    assert wheels.member(REQUIREMENT, wheel_sha256, "toy/text.txt", sha256_of(TEXT)) == path


def test_a_folder_keeps_its_tree(wheel_sha256: str) -> None:
    folder = wheels.member(REQUIREMENT, wheel_sha256, "toy/model", None)
    assert folder.name == "model"
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (folder / "deep" / "weights.safetensors").read_bytes() == b"1234"


def test_a_damaged_member_is_taken_out_again(wheel_sha256: str) -> None:
    path = wheels.member(REQUIREMENT, wheel_sha256, "toy/text.txt", sha256_of(TEXT))
    path.write_bytes(b"in the beginnink.")
    assert wheels.member(REQUIREMENT, wheel_sha256, "toy/text.txt", sha256_of(TEXT)).read_bytes() == TEXT


def test_another_wheel_than_the_pinned_one_is_refused_with_both_hashes(wheel_sha256: str, cache: Path) -> None:
    with pytest.raises(IntegrityError, match=f"{wheel_sha256}, expected {OTHER}"):
        wheels.member(REQUIREMENT, OTHER, "toy/text.txt", None)
    assert not list(cache.rglob("*.whl"))


def test_another_member_than_the_pinned_one_is_refused_with_both_hashes(wheel_sha256: str) -> None:
    with pytest.raises(IntegrityError, match=f"{sha256_of(TEXT)}, expected {OTHER}"):
        wheels.member(REQUIREMENT, wheel_sha256, "toy/text.txt", OTHER)


def test_an_absent_member_says_which_was_meant(wheel_sha256: str) -> None:
    with pytest.raises(SqueezeError, match=r"no member 'toy/texte.txt'; did you mean 'toy/text.txt'"):
        wheels.member(REQUIREMENT, wheel_sha256, "toy/texte.txt", None)


@pytest.mark.promise(15)
@pytest.mark.parametrize("name", ["../secret", "toy/../../secret", "/etc/passwd", "toy\\..\\secret", ""])
def test_a_member_outside_the_wheel_is_refused(name: str) -> None:
    with pytest.raises(SqueezeError, match="points outside"):
        wheels.member(REQUIREMENT, OTHER, name, None)


@pytest.mark.promise(15)
def test_a_wheel_that_climbs_out_of_its_folder_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = build_wheel(tmp_path / "index", {"toy/text.txt": TEXT, "toy/../../../evil.txt": b"!"})
    serve(wheel.parent, monkeypatch)
    with pytest.raises(SqueezeError, match="points outside"):
        wheels.member(REQUIREMENT, sha256_of(wheel.read_bytes()), "toy", None)
    assert not list(tmp_path.rglob("evil.txt"))


@pytest.mark.parametrize("requirement", ["toy-assets", "toy-assets>=1.0", "--index-url==1", "toy==1 --pre"])
def test_only_an_exact_version_is_fetched(requirement: str) -> None:
    with pytest.raises(SqueezeError, match="NAME==VERSION"):
        wheels.wheel(requirement, OTHER)


def test_a_version_that_does_not_exist_is_one_line(wheel_sha256: str) -> None:
    with pytest.raises(SqueezeError, match=r"pypi:toy-assets==9.0: pip download failed") as caught:
        wheels.wheel("toy-assets==9.0", OTHER)
    assert "\n" not in str(caught.value)


def test_no_network_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(SqueezeError, match="no network") as caught:
        wheels.wheel(REQUIREMENT, OTHER)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "disk full" in wheels.cause(["ERROR: Could not install: [Errno 28] No space left on device"])


def test_two_processes_at_once_fetch_once(wheel_sha256: str, cache: Path) -> None:
    asked = f"{REQUIREMENT!r}, {wheel_sha256!r}, 'toy/text.txt', None"
    code = f"from squeeze.sources import wheels; print(wheels.member({asked}))"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0][0] == outputs[1][0]
    assert Path(outputs[0][0].strip()).read_bytes() == TEXT
    assert sum(f"fetching {REQUIREMENT}" in errors for _, errors in outputs) == 1
