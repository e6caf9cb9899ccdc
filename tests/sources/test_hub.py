"""Snapshots are of one commit, hold safetensors only, and fail in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from squeeze.core.errors import SqueezeError
from squeeze.sources import hub

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))


class Hub:
    """Stands in for the hub: one repository's files, and the calls that asked for them."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.calls = folder, list[dict[str, Any]]()
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(name.encode())

    def snapshot_download(self, repository: str, **settings: Any) -> str:
        self.calls.append({"repository": repository, **settings})
        return str(self.folder)


def test_a_snapshot_is_taken_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Hub(tmp_path / "hub", ["config.json", "model.safetensors"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", there.snapshot_download)
    folder = hub.snapshot("openai-community/gpt2", COMMIT)
    assert hub.snapshot("openai-community/gpt2", COMMIT) == folder
    assert (folder / "model.safetensors").read_bytes() == b"model.safetensors"
    [call] = there.calls
    assert call["revision"] == COMMIT
    assert not any(pattern.endswith((".bin", ".pt", ".h5", "*")) for pattern in call["allow_patterns"])


def test_a_file_of_a_data_set_is_taken_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Hub(tmp_path / "hub", ["test.raw"])
    calls = []

    def download(repository: str, name: str, **settings: Any) -> str:
        calls.append((repository, name, settings))
        return str(there.folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    path = hub.data_file("org/texts", COMMIT, "test.raw")
    assert path.read_bytes() == b"test.raw"
    assert hub.data_file("org/texts", COMMIT, "test.raw") == path
    assert calls == [("org/texts", "test.raw", {"repo_type": "dataset", "revision": COMMIT})]
    with pytest.raises(SqueezeError, match="40 hex digits"):
        hub.data_file("org/texts", "main", "test.raw")


def test_a_repository_without_safetensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Hub(tmp_path / "hub", ["config.json"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", there.snapshot_download)
    with pytest.raises(SqueezeError, match="has no safetensors"):
        hub.snapshot("facebook/opt-125m", COMMIT)


@pytest.mark.parametrize("revision", ["main", "", "v1.0", COMMIT[:7], COMMIT.upper()])
def test_only_a_full_commit_is_a_revision(revision: str) -> None:
    with pytest.raises(SqueezeError, match=r"model\.revision=<40 hex digits>"):
        hub.snapshot("openai-community/gpt2", revision)


@pytest.mark.promise(15)
@pytest.mark.parametrize("repository", ["../gpt2", "a/b/c", "/etc", "gpt2;ls"])
def test_only_a_repository_name_is_asked_for(repository: str) -> None:
    with pytest.raises(SqueezeError, match="ORGANISATION/REPOSITORY"):
        hub.snapshot(repository, COMMIT)


def test_no_network_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for fetch in (lambda: hub.snapshot("nobody/nothing", COMMIT), lambda: hub.data_file("nobody/texts", COMMIT, "a")):
        with pytest.raises(SqueezeError, match="no network") as caught:
            fetch()
        assert "\n" not in str(caught.value)
