"""A planted slow-down is real work with the same answers, and sweeps are judged by what the board says of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scripts.planted import BRIEF, choices, install, main, summary, verdicts, words
from scripts.slowed.techniques.slowed.blocks import MoreBlocks
from squeeze.artifacts import format as artifact
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.models import architecture
from squeeze.records.record import Estimate, Status
from squeeze.request.expand import cells
from tests.fabricated import MODEL, cell, record
from tests.tiny import tiny_subject

PUBLISHED = Path(__file__).parents[2] / "results" / "published" / "planted" / "planted.json"
TOKENS = torch.arange(12)[None]


def test_more_blocks_compute_and_change_nothing(tmp_path):
    """Also once it is saved and loaded: the answers are the model's to the last bit, and each block has its cache."""
    plain = tiny_subject("llama")
    with torch.inference_mode():
        wanted = plain.model(TOKENS).logits
    slower = MoreBlocks(0.8).apply(tiny_subject("llama"), None)
    added = slower.claims["added_blocks"]
    assert added == round(0.8 * slower.claims["added_blocks"] / slower.claims["added_work"]) > 0
    artifact.save(slower, tmp_path)
    loaded = artifact.load(tmp_path).model
    assert len(architecture.blocks(loaded)) == len(architecture.blocks(plain.model)) + added
    calls = []
    for block in architecture.blocks(loaded):
        block.mlp.down_proj.register_forward_hook(lambda _, inputs, _output: calls.append(float(inputs[0].abs().sum())))
    with torch.inference_mode():
        output = loaded(TOKENS, use_cache=True)
    assert torch.equal(output.logits, wanted)
    assert len(output.past_key_values.layers) == len(calls) == len(architecture.blocks(loaded))
    assert min(calls) > 0  # every block's inputs are real ones


def test_what_cannot_be_slowed_is_refused():
    with pytest.raises(Unsupported, match="o_proj"):
        MoreBlocks(0.5).apply(tiny_subject("gpt2"), None)
    with pytest.raises(Unsupported, match="is no block"):
        MoreBlocks(0.01).apply(tiny_subject("llama"), None)


def test_the_sweep_is_one_block_of_plants_and_honest_replicates(tmp_path, monkeypatch):
    install(tmp_path)
    choices(tmp_path, [0.1, 0.2], 2, "smollm2_135m", "float32")
    monkeypatch.syspath_prepend(tmp_path)
    made = cells(["sweep=planted", *BRIEF], tmp_path)
    assert [(one.technique["name"], one.replicate) for one in made] == [
        ("slowed_100", 0),
        ("slowed_200", 0),
        ("none", 1),
        ("none", 2),
    ]
    assert [one.technique["steps"][0]["share"] for one in made[:2]] == [0.1, 0.2]
    assert len({json.dumps(one.common_protocol) for one in made}) == 1
    assert {one.model["dtype"] for one in made} == {"float32"}


def sweep(plants, honest):
    """Made-up records: the speed-ups of plants by the share of work that they add, and of honest replicates."""
    rows = [*plants.items(), *((0.0, value) for value in honest)]
    made = []
    for number, (share, value) in enumerate(rows):
        speed_up = Estimate(value, value * 0.97, value * 1.03, 1e-6 if abs(value - 1) > 0.03 else 0.5, 8)
        subject = (
            cell("slowed", "slowed", {"share": share}) if share else cell("none", "baseline", {}, replicate=number)
        )
        row = record(subject, {"decode_speedup": speed_up}, claimed={"added_work": share} if share else {})
        made.append(replace(row, realised={**row.realised, "speed_baseline": MODEL["dtype"]}))
    return made


def test_what_was_found_and_what_was_cried_is_counted():
    boards = [
        sweep({0.105: 0.91, 0.21: 0.83}, [1.0, 0.99]),
        sweep({0.105: 0.98, 0.21: 0.84}, [1.08, 1.0]),
    ]
    found = summary([verdicts(board, MODEL["dtype"]) for board in boards])
    assert found["sweeps"] == 2
    assert {share: (rows["found"], rows["rows"]) for share, rows in found["planted"].items()} == {
        "0.105": (1, 2),
        "0.210": (2, 2),
    }
    assert (found["honest"]["called_different"], found["honest"]["rows"]) == (1, 4)
    assert list(words(found)) == [
        "10.5% more work: found in 1 of 2 rows, speed-ups of 0.910 to 0.980, half-width at most 3.0%",
        "21.0% more work: found in 2 of 2 rows, speed-ups of 0.830 to 0.840, half-width at most 3.0%",
        "honest replicates: 1 of 4 called different, speed-ups of 0.990 to 1.080, half-width at most 3.0%",
    ]


def test_a_plant_called_faster_is_not_found():
    found = summary([verdicts(sweep({0.105: 1.2}, []), MODEL["dtype"])])
    assert (found["planted"]["0.105"]["found"], found["planted"]["0.105"]["called_faster"]) == (0, 1)


def test_a_sweep_that_shows_nothing_is_refused():
    rows = sweep({0.105: 0.9}, [1.0])
    with pytest.raises(SqueezeError, match="bfloat16 is faster here than float32"):
        verdicts(rows, "float32")
    failed = replace(rows[1], status=Status.CRASHED, reason="killed", estimates={})
    with pytest.raises(SqueezeError, match="killed"):
        verdicts([rows[0], failed], MODEL["dtype"])


def test_a_sweep_that_does_not_run_is_named(tmp_path, capfd):
    assert main(["--sweeps", "1", "--results", str(tmp_path / "results"), "protocol.rounds=3"]) == 2
    said = capfd.readouterr().err
    assert "protocol.rounds" in said
    assert "sweep_00 ended with code 2" in said


@pytest.mark.promise(6)
def test_promise_6_slow_downs_planted_in_live_sweeps_are_found(figure):
    found = json.loads(PUBLISHED.read_text())
    for share, rows in found["planted"].items():
        assert rows["found"] >= (0.9 if float(share) < 0.2 else 1.0) * rows["rows"]
    figure(f"{found['sweeps']} live sweeps: {'; '.join(words(found))}")
