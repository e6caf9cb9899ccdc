from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from squeeze.records.record import Record, Status
from squeeze.request.cell import Cell
from squeeze.request.choices import Choices
from squeeze.request.expand import cells
from squeeze.runner.listing import default, forecast, show
from squeeze.sources.size import parameters


def cell(technique="rtn", bits=4, rounds=5):
    return Cell(
        model={"name": "m", "source": "hf:a/b"},
        technique={"name": technique, "steps": [{"bits": bits}]},
        runtime={"name": "eager", "device": "cpu"},
        protocol={"name": "p", "rounds": rounds, "perplexity": {"tokens": 8000}, "tasks": ["a", "b"], "items": 10},
    )


def record(of, seconds, status=Status.OK):
    return Record(
        cell=of.to_json(), key=of.key, status=status, artifact_key="", fingerprint="", attempt="", started="",
        finished="", stages={"build": seconds / 4, "quality": 3 * seconds / 4},
    )  # fmt: skip


def test_without_records_the_rule_of_thumb_counts_processes_and_tokens():
    assert default(cell()) == 12 * 10 + (8000 + 2 * 10 * 100) / 1000
    assert default(cell(rounds=10)) - default(cell(rounds=5)) == 100


@pytest.mark.parametrize("said", [{"parameters": 1_350_000_000}, {}])
def test_a_larger_model_takes_longer_in_proportion(said, tmp_path, monkeypatch):
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    small = cell()
    large = replace(small, model={**small.model, **said})
    work = 12 * 5 + (8000 + 2 * 10 * 100) / 1000
    assert default(large) - default(small) == pytest.approx(9 * work if said else 0)


def test_the_size_of_a_model_that_is_here_is_counted(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.zeros(30, 50), "b.bias": torch.zeros(7)}, path)
    (tmp_path / "config.json").write_text("{}")
    local = {"name": "m", "source": f"file:{tmp_path}", "parameters": 9}
    assert parameters(local) == 30 * 50 + 7
    assert parameters({**local, "source": f"file:{path}"}) == path.stat().st_size
    assert parameters({**local, "source": f"file:{tmp_path / 'gone'}"}) == 9, "what its YAML says"
    assert parameters({"source": "random:llama", "seed": 0}) < 1_000_000


def test_packaged_models_say_how_large_they_are_and_nothing_measured_depends_on_it():
    for name in Choices.within(None).names("model"):
        (found,) = cells([f"model={name}", "technique=none", "protocol=smoke"])
        assert parameters(found.model), name
        unsaid = replace(found, model={key: value for key, value in found.model.items() if key != "parameters"})
        assert (unsaid.key, unsaid.model_identity) == (found.key, found.model_identity)


def test_what_takes_longer_than_calendars_go_is_shown_too(capsys):
    show([cell(rounds=10**16)], {}, {cell(rounds=10**16).key: default(cell(rounds=10**16))})
    assert "1 cells, 1 to measure" in capsys.readouterr().err


def test_a_whole_text_counts_as_many_tokens():
    part = cell()
    whole = replace(part, protocol={**part.protocol, "perplexity": {"tokens": None}})
    assert default(whole) - default(part) == pytest.approx((300_000 - 8000) / 1000)


def test_a_like_cell_takes_the_median_of_what_was_taken():
    records = [record(cell(bits=bits), seconds) for bits, seconds in [(8, 40), (3, 60), (2, 2000)]]
    found = forecast([cell(bits=8), cell(bits=4), cell("magnitude", bits=5)], records)
    assert list(found.values()) == [60, 60, default(cell())]


def test_a_failed_attempt_says_nothing_about_time():
    found = forecast([cell()], [record(cell(), 1, Status.CRASHED)])
    assert found == {cell().key: default(cell())}
