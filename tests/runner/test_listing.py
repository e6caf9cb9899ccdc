from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from squeeze.records.record import Record, Status
from squeeze.request.cell import Cell
from squeeze.request.expand import cells
from squeeze.runner.listing import USUAL, about, default, forecast, show
from squeeze.sources.size import parameters


def cell(technique="rtn", bits=4, rounds=5):
    return Cell(
        model={"name": "m"},
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


def test_a_model_that_is_here_is_counted_and_a_damaged_one_goes_by_its_name(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.zeros(30, 50), "b.bias": torch.zeros(7)}, path)
    (tmp_path / "config.json").write_text("{}")
    local = {"name": "own_7b", "source": f"file:{tmp_path}"}
    assert parameters(local) == 30 * 50 + 7
    assert parameters({**local, "source": f"file:{path}"}) == path.stat().st_size
    assert parameters({**local, "source": f"file:{tmp_path / 'gone'}"}) == 7e9
    assert parameters({"name": "m"}) is None


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


@pytest.mark.parametrize(
    ("overrides", "millions"),
    [
        ("model=smollm2_135m", 135),
        ("model=tinyllama_1b", 1000),
        ("model=llama2_7b", 7000),
        ("model=gpt2", 135),
        ("model=tiny", 0.313),
        ("model=tiny_llama", 0.1),
        ("model=gpt2 model.name=own model.source=hf:org/Some-1.5B-Instruct", 1500),
    ],
)
def test_how_large_a_model_is_shows_before_it_is_fetched(overrides, millions):
    [cell] = cells(overrides.split())
    assert (parameters(cell.model) or USUAL) / 1e6 == pytest.approx(millions, rel=0.01)


def test_a_first_run_on_the_tiny_model_is_announced_as_one_of_minutes():
    tiny, usual = (cells([f"model={name}", "protocol=smoke"])[0] for name in ("tiny", "smollm2_135m"))
    assert 10 < default(tiny) < 30
    assert 150 < default(usual) < 220


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(20, "less than a minute"), (840, "about 14 min"), (3600, "about 1 h 0 min"), (8400, "about 2 h 20 min")],
)
def test_durations_are_said_as_people_do(seconds, text):
    assert about(seconds) == text
