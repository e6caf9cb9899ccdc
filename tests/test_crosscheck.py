"""Cross-checks: an independent loop scores everyone, and the table says who is better only where that is shown."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scripts.crosscheck import __main__ as crosscheck
from scripts.crosscheck import trial as one_trial
from scripts.crosscheck.comparisons import OURS, UNCOMPRESSED, Comparison, Trial, comparisons, trials
from scripts.crosscheck.masks import PRUNED, STRIDE, agreement, zeros
from scripts.crosscheck.perplexity import perplexity, token_losses
from scripts.crosscheck.table import collate, perplexity_ratio, verdict
from squeeze.layers.contract import matrices, prepare_layers
from squeeze.records.record import Estimate
from squeeze.request.expand import cells
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.losses import next_token
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import CAUSAL, tiny_model, tiny_subject

PAIR = Comparison(Trial(OURS, {"request": "technique=x"}, "a form"), Trial("lib", {"bits": 4}, "another"), "a note")


def losses(shift=0.0, noise=0.0, seed=0):
    """(8, 1023): those of one text, moved and disturbed."""
    text = np.random.default_rng(1).gamma(2.0, size=(8, 1023))
    return (text + shift + noise * np.random.default_rng(seed).normal(size=text.shape)).astype(np.float32)


def leave(results, trial, values, **facts):
    np.savez(results / f"{trial.name}.npz", losses=values)
    facts = {"version": "1.2", "perplexity": perplexity(values), "seconds": 3.0, "peak_bytes": 2e9, **facts}
    (results / f"{trial.name}.json").write_text(json.dumps(facts))


def test_losses_are_those_of_the_next_token():
    """Token t + 1 gets 1/2, each of the others 1/8, where its predecessor t says so."""
    logits = torch.full((5, 5), 1 / 8).scatter(1, (torch.arange(5)[:, None] + 1) % 5, 1 / 2).log()
    windows = torch.tensor([[0, 1, 2, 4], [3, 4, 0, 0]])
    found = token_losses(lambda input_ids: SimpleNamespace(logits=7 + logits[input_ids].bfloat16()), windows)
    assert found == pytest.approx(np.log([[2, 2, 8], [2, 2, 8]]), abs=0.02)
    assert perplexity(found) == pytest.approx(2 * 2 ** (2 / 3), rel=0.02)


@pytest.mark.parametrize("architecture", CAUSAL[:2])
def test_the_loop_agrees_with_our_own_scoring(architecture):
    model, windows = tiny_model(architecture), torch.randint(256, (3, 24), generator=torch.Generator().manual_seed(0))
    own = float(next_token(model, windows))
    assert np.log(perplexity(token_losses(model, windows))) == pytest.approx(own, abs=1e-5)


def test_a_ratio_is_ours_over_theirs_and_its_interval_is_paired():
    estimate = perplexity_ratio(losses(shift=np.log(1.05), noise=0.1), losses())
    assert estimate.value == pytest.approx(1.05, rel=0.004)
    assert estimate.low < 1.05 < estimate.high
    assert estimate.high - estimate.low < 0.02, "unpaired, the text's own variation would be thirty times as much"


def test_losses_of_other_tokens_are_refused():
    with pytest.raises(ValueError, match=r"\(8, 1023\) of ours, \(4, 1023\) of theirs"):
        perplexity_ratio(losses(), losses()[:4])


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (1.009, 1.008, 1.010, "within 1 %"),
        (0.991, 0.990, 0.992, "within 1 %"),
        (1.020, 1.010, 1.030, "worse"),
        (0.980, 0.970, 0.990, "better"),
        (1.020, 0.990, 1.050, "no difference shown"),
        (0.980, 0.950, 1.001, "no difference shown"),
        (1.020, None, None, "no difference shown"),
    ],
)
def test_a_difference_is_one_beyond_the_margin_if_the_interval_leaves_1_out(value, low, high, expected):
    assert verdict(Estimate(value, low, high)) == expected


def test_the_table_holds_both_sides_and_what_is_known_of_a_difference(tmp_path):
    leave(tmp_path, UNCOMPRESSED, losses(shift=-0.5))
    leave(tmp_path, PAIR.ours, losses(shift=0.1, noise=0.1), seconds=5.0)
    leave(tmp_path, PAIR.theirs, losses(), peak_bytes=4e9)
    text = collate(tmp_path, [PAIR])
    mine, other = perplexity(losses(shift=0.1, noise=0.1)), perplexity(losses())
    assert f"| 1 | x | lib 1.2 | {mine:.3f} | {other:.3f} | 1.10" in text
    assert "| worse | 5 | 3 | 2000 | 4000 |\n" in text
    assert "\n1. Ours: a form. Theirs: another. a note\n" in text
    assert f"perplexity {perplexity(losses(shift=-0.5)):.3f} uncompressed" in text
    header, line = (tmp_path / "crosscheck.csv").read_text().splitlines()
    row = dict(zip(header.split(","), line.split(","), strict=True))
    assert (row["seconds"], row["their_seconds"], row["theirs"]) == ("5", "3", "bits=4")


def test_a_trial_that_fails_is_a_row_that_says_why(tmp_path, monkeypatch):
    leave(tmp_path, UNCOMPRESSED, losses())
    leave(tmp_path, PAIR.ours, losses())
    not_run = collate(tmp_path, [PAIR])
    assert "| 1 |" not in not_run
    assert not_run.endswith("\nNot run here: x against lib.\n")
    monkeypatch.setattr(crosscheck.sys, "executable", "/bin/false")
    crosscheck.attempt(PAIR.theirs, tmp_path, tmp_path)
    failed = collate(tmp_path, [PAIR])
    assert "| failed: ended with 1 |" in failed
    assert "Not run" not in failed


def test_every_listed_request_of_ours_is_one_cell_and_no_trial_hides_another():
    pairs = comparisons()
    for request in {pair.ours.request for pair in pairs}:
        [cell] = cells(request.split())
        assert cell.technique["steps"]
    assert all(pair.ours.form and pair.theirs.form for pair in pairs)
    sides = {(side.library, str(side.options)) for pair in pairs for side in (pair.ours, pair.theirs)}
    assert len(trials()) == 1 + len(sides)


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize(("library", "damping"), [("gptqmodel", 0.05), ("llmcompressor", 0.01)])
def test_gptq_is_compared_in_each_librarys_own_settings_too(bits, library, damping):
    steps = [
        cells(pair.ours.request.split())[0].technique["steps"][0]
        for pair in comparisons()
        if pair.theirs.library == library and pair.theirs.options.get("bits") == bits and "gptq" in pair.ours.request
    ]
    forms = {(step["grid"], step["damping_of"], step["damping"]) for step in steps}
    best, own = ("signed", "own", 0.3), ("absmax", "mean", damping)
    apart = {("absmax", "own", 0.3), ("signed", "mean", damping)}  # what each difference is worth by itself
    assert forms - apart == {best, own}
    assert forms & apart == (apart if (library, bits) == ("llmcompressor", 3) else set())


def test_masks_agree_where_both_or_neither_is_zero(tmp_path):
    """By hand: of four weights, one is pruned by us alone."""
    ours, theirs = np.array([True, True, False, False]), np.array([True, False, False, False])
    assert agreement(ours, theirs) == 0.75
    assert agreement(ours, ours) == 1
    assert agreement(ours, ~ours) == 0
    assert agreement(ours, None) is agreement(None, theirs) is agreement(ours, theirs[:3]) is None
    leave(tmp_path, UNCOMPRESSED, losses())
    for trial, mask in ((PAIR.ours, ours), (PAIR.theirs, theirs)):
        leave(tmp_path, trial, losses())
        np.savez(tmp_path / f"{trial.name}.npz", losses=losses(), zeros=mask)
    text = collate(tmp_path, [PAIR])
    assert "Theirs: another. 75.0% of the weights are zero in both or neither. a note\n" in text
    header, line = (tmp_path / "crosscheck.csv").read_text().splitlines()
    assert dict(zip(header.split(","), line.split(","), strict=True))["same_zeros"] == "0.75"


@pytest.mark.parametrize("architecture", CAUSAL[:2])
def test_zeros_are_those_of_the_blocks_however_they_are_stored(architecture):
    subject = tiny_subject(architecture)
    assert zeros(subject.model) is None, "nothing is pruned"
    pruned = Magnitude(0.5).apply(subject, CalibrationText.empty())
    dense = [layer.dequantize().flatten()[::STRIDE] == 0 for _, layer in matrices(pruned.model)]
    expected = torch.cat(dense).numpy()
    assert 0.4 < expected.mean() < 0.6
    assert (zeros(pruned.model) == expected).all()
    prepare_layers(pruned.model)
    assert (zeros(pruned.model) == expected).all()


def test_weights_that_are_rounded_to_zero_are_no_mask():
    """Of 3 bits far more than PRUNED are zero; a library that leaves them as floats has such zeros, too."""
    rounded = RoundToNearest(3, 32, symmetric=True).apply(tiny_subject(CAUSAL[0]), CalibrationText.empty()).model
    share = [float((layer.dequantize() == 0).float().mean()) for _, layer in matrices(rounded)]
    assert min(share) > PRUNED
    assert zeros(rounded) is None


def test_pruning_is_compared_in_the_librarys_settings_and_by_its_masks():
    pairs = [pair for pair in comparisons() if pair.theirs.options.get("method") in ("wanda", "sparsegpt")]
    assert {(pair.theirs.options["method"], pair.theirs.options.get("run")) for pair in pairs} == {
        (method, run) for method in ("wanda", "sparsegpt") for run in (None, 4)
    }
    for pair in pairs:
        [cell] = cells(pair.ours.request.split())
        assert cell.axis("sparsity") == pair.theirs.options["sparsity"]
        assert cell.axis("run") == pair.theirs.options.get("run")
    [structured] = [pair for pair in comparisons() if pair.theirs.library == "torch_pruning"]
    assert "by=magnitude" in structured.ours.request


def test_trained_rounding_is_among_the_references():
    trained = [pair for pair in comparisons() if pair.theirs.library == "auto_round" and pair.theirs.options["iters"]]
    assert {pair.theirs.options["bits"] for pair in trained} == {4, 3}


def test_the_notes_name_the_grid_wherever_gptq_differs_in_it():
    for pair in comparisons():
        if pair.ours.request.startswith("technique=gptq") and pair.theirs.library in ("gptqmodel", "llmcompressor"):
            assert "grid=absmax" in pair.ours.request or "grid" in pair.note


@pytest.mark.parametrize("timed", [True, False])
def test_a_trial_on_a_shared_machine_keeps_no_seconds(tmp_path, monkeypatch, timed):
    model = tiny_model(CAUSAL[0])
    monkeypatch.setattr(one_trial, "_module", lambda _: SimpleNamespace(quantize=lambda *_, **__: model))
    monkeypatch.setattr(one_trial, "version", lambda _: "1.2")
    inputs = SimpleNamespace(evaluation=torch.zeros((1, 4), dtype=torch.int64))
    one_trial.run(PAIR.ours, inputs, tmp_path, timed)
    facts = json.loads((tmp_path / f"{PAIR.ours.name}.json").read_text())
    assert ("seconds" in facts) == timed
    assert facts["peak_bytes"] > 0
    leave(tmp_path, UNCOMPRESSED, losses())
    np.savez(tmp_path / f"{PAIR.ours.name}.npz", losses=losses())
    leave(tmp_path, PAIR.theirs, losses())
    assert ("| untimed | 3 |" in collate(tmp_path, [PAIR])) != timed


def test_words_choose_comparisons_with_both_their_sides():
    chosen = {(trial.library, trial.request) for trial in trials(["torchao", "bits=8"]).values()}
    ours = {request for library, request in chosen if library == "ours"}
    assert ours == {"technique=none", "technique=rtn bits=8 group_size=null"}
    assert chosen - {("ours", request) for request in ours} == {("torchao", "bits=8")}


def test_what_is_published_is_what_the_trials_give(tmp_path):
    published = Path(__file__).parents[1] / "results" / "published" / "crosscheck"
    shutil.copytree(published, tmp_path / "copy")
    collate(tmp_path / "copy")
    for name in ("crosscheck.md", "crosscheck.csv"):
        assert (tmp_path / "copy" / name).read_bytes() == (published / name).read_bytes()
