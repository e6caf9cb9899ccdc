"""What a name on the command line stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from squeeze.artifacts import format as artifact
from squeeze.artifacts import keys
from squeeze.core import cache, environment
from squeeze.core.errors import SqueezeError
from squeeze.records.record import Record, Status
from squeeze.records.store import RecordStore
from squeeze.request.expand import cells
from squeeze.runner import located as naming
from squeeze.runner.located import located

RTN = "model=tiny_llama technique=rtn group_size=32"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "results"


def keep_record(results: Path, artifact_key: str = "") -> Record:
    (cell,) = cells(RTN.split())
    key = artifact_key or keys.artifact_key(cell)
    here = environment.fingerprint(environment.describe(), cell.runtime)
    store = RecordStore(results)
    store.prepare()
    record = Record(
        cell=cell.to_json(), key=cell.key, artifact_key=key, fingerprint=here, status=Status.UNSUPPORTED,
        attempt="a" * 32, started="2026-01-01T00:00:00Z", finished="2026-01-01T00:00:01Z", stages={}, reason="none",
        environment=environment.describe(),
    )  # fmt: skip
    return store.write(record)


def test_a_folder_is_itself(tmp_path: Path, results: Path) -> None:
    assert located(str(tmp_path), results) == tmp_path


def test_a_request_and_a_model_are_built_once_and_found_by_key(results: Path) -> None:
    folder = located(RTN, results)
    assert artifact.describe(folder)["claims"]["bits"] == 4
    assert located(RTN, results) == folder
    key = keys.artifact_key(cells(RTN.split())[0])
    assert located(key[:12], results) == folder
    model = located("tiny_llama", results)
    assert artifact.describe(model)["layers"] == {}
    assert model != folder


def test_a_label_is_that_of_a_record_and_built_again_where_the_cache_has_lost_it(results: Path) -> None:
    record = keep_record(results)
    label = cells(RTN.split())[0].label
    folder = located(label, results)
    assert folder == keys.folder(record.artifact_key)
    assert located(label, results) == folder
    assert artifact.describe(folder)["claims"]["bits"] == 4


def test_an_artifact_that_would_be_another_today_is_not_built_in_its_name(results: Path) -> None:
    keep_record(results, artifact_key="f" * 64)
    with pytest.raises(SqueezeError, match=r"would build another; measure it anew \(squeeze rerun tiny_llama-rtn-4"):
        located(cells(RTN.split())[0].label, results)


def test_a_record_of_before_is_compared_as_it_was_built(results: Path) -> None:
    built = located(RTN, results)
    old = keys.folder("f" * 64)
    old.parent.mkdir(parents=True)
    built.rename(old)
    keep_record(results, artifact_key="f" * 64)
    assert located(cells(RTN.split())[0].label, results) == old


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"\./nowhere: no such folder; expected one with artifact\.json or config\.json"),
        ("some/where", "no such folder"),
        (
            "tiny_lama",
            r"expected a folder, a model \(did you mean 'tiny_llama'\?\), a row of .*, or a request in quotes",
        ),
        ("model=tiny_llama technique=rtn bits=4,3", r"stands for 2 cells \(tiny_llama-rtn-4.*, tiny_llama-rtn-3"),
        ("technique=rnt", "unknown technique 'rnt'"),
    ],
)
def test_what_stands_for_nothing_is_refused(name: str, message: str, results: Path) -> None:
    with pytest.raises(SqueezeError, match=message):
        located(name, results)


def test_too_short_a_key_is_refused(results: Path) -> None:
    for key in ("abcdef1", "abcdef2"):
        keys.folder(key + "0" * 57).mkdir(parents=True)
    with pytest.raises(SqueezeError, match="begins the keys of 2 artifacts"):
        located("abcdef", results)
    assert located("abcdef1", results).parent.name.startswith("abcdef1")


def test_what_is_built_is_found_by_folder_key_and_label_and_nothing_is_built_for_it(results: Path) -> None:
    record = keep_record(results)
    label = cells(RTN.split())[0].label
    with pytest.raises(SqueezeError, match=f"{label}: its artifact is not in the cache .*`squeeze show {label}` says"):
        naming.built(label, results)
    folder = located(RTN, results)
    for name in (label, record.key[:8], record.artifact_key[:8], str(folder)):
        assert naming.built(name, results) == folder
    with pytest.raises(SqueezeError, match=r"'nobody'.*; expected a folder, or a row of "):
        naming.built("nobody", results)
