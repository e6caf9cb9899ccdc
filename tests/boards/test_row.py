from dataclasses import replace
from pathlib import Path

from squeeze.boards import glossary
from squeeze.boards.row import figures
from squeeze.boards.table import read, table
from squeeze.records.record import Estimate, Status
from squeeze.request.cell import Cell
from tests.fabricated import cell, record, smoke_records

PUBLISHED = Path(__file__).parents[2] / "results" / "published"


def test_figures_are_said_in_words_with_intervals_and_verdicts_of_the_board():
    records = smoke_records()
    [own] = [each for each in records if Cell.from_json(each.cell).label == "smollm2_135m-rtn-4-g64"]
    told = list(figures(own, records))
    assert told.index("size:") < told.index("speed:") < told.index("quality:")
    assert "  rank 6 to 7, by perplexity: group e" in told
    [speed] = [text for text in told if text.startswith("  decode_speedup: ")]
    assert speed.startswith("  decode_speedup: 1.65 times [1.6")
    assert "95 %], faster ▲ (how many times as fast it decodes as the uncompressed model)" in speed
    assert any(text.startswith("  bytes: 112 MB (of the weight files)") for text in told)
    assert any(
        text.startswith("  decode_tokens_per_s: 30 a second, 29.1 to 30.9 a second over the rounds") for text in told
    )
    assert "  acc_sciq: 70.00% (share of right answers in sciq)" in told


def test_what_a_recount_found_and_flags_are_said():
    found = {"mismatches": ["half of the layers are dense", "x"], "memory_real": False}
    own = record(cell("rtn", "q", {"bits": 4}), realised=found, flags=("claimed != realised",))
    told = list(figures(own, [own]))
    assert "  mismatches: half of the layers are dense; x" in told
    assert any(text.startswith("  memory_real: no") for text in told)
    assert told[-1].startswith("* claimed != realised (rtn-4): a recount found")


def test_a_failed_row_has_no_rank_and_foreign_words_steer_no_terminal():
    own = record(
        cell("rtn", "q", {"bits": 4}), {"wer\x1b[2J": Estimate(1.0)}, realised={"x": "a\x1b[2Jb"}, status=Status.CRASHED
    )
    told = list(figures(own, [replace(own, attempt="0" * 32, finished="2025-01-01T00:00:00+00:00"), own]))
    assert told == ["how it went:", "  wer: 1", "  x: ab"]


def test_every_published_column_is_explained():
    for run in ("smoke", "quantization", "kv_cache", "calibration"):
        columns = read(PUBLISHED / run).columns
        known = {f"{name}_{part}" for name in columns for part in glossary.PARTS}
        assert [name for name in columns if name not in known and glossary.term(name) is None] == []


def test_columns_of_batches_and_tasks_are_explained_by_their_kin():
    assert glossary.term("ttft_ms_b8") == ("time to the first token; 8 requests at a time", "ms")
    assert glossary.term("acc_piqa_delta") == ("change of the share of right answers in piqa", "")
    assert glossary.term("ttft_ms_at_512") == ("time to the first token; of a prompt of 512 tokens", "ms")
    assert glossary.term("decode_speedup_at_512") is glossary.term("xyz") is None
    assert (glossary.group_of("ttft_ms_b8"), glossary.group_of("acc_piqa")) == ("speed", "quality")
    assert glossary.group_of("ttft_speedup_at_512") == "speed"


def test_the_curve_is_said_shorter_prompts_first_with_its_spread():
    curve = {f"ttft_ms_at_{n}": Estimate(n / 2, n / 4, float(n), n=8) for n in (1000, 64, 512)}
    own = record(cell("rtn", "q", {"bits": 4}), curve)
    told = [text for text in figures(own, [own]) if "ttft_ms_at" in text]
    assert [text.split(":")[0].strip() for text in told] == ["ttft_ms_at_64", "ttft_ms_at_512", "ttft_ms_at_1000"]
    assert told[1].startswith("  ttft_ms_at_512: 256 ms, 128 to 512 ms over the rounds (time to the first token;")


def test_the_loss_of_quality_is_said_step_by_step():
    steps = [
        {"step": "none", "perplexity_held_out": 20.0},
        {"step": "wanda.Wanda", "perplexity_held_out": 25.0},
        {"step": "recover.Recover", "perplexity_held_out": 21.0},
        {"step": "rtn.RoundToNearest", "perplexity_held_out": None},
    ]
    figures_of_training = {"training_tokens": Estimate(134_217_728), "training_seconds": Estimate(12.5)}
    own = record(cell("rtn", "training", {"bits": 4}), figures_of_training, realised={"steps": steps})
    told = list(figures(own, [own]))
    words = "(perplexity of calibration text that was held out)"
    assert [text for text in told if "after step" in text] == [
        f"  after step none: 20 {words}",
        f"  after step wanda.Wanda: 25, +25.0% {words}",
        f"  after step recover.Recover: 21, -16.0% {words}",
        f"  after step rtn.RoundToNearest: no finite number {words}",
    ]
    assert any(text.startswith("  training_tokens: 134,217,728 (of text") for text in told)
    assert any(text.startswith("  training_seconds: 12.5 s (") for text in told)


def test_of_a_classifier_it_is_said_in_points():
    shares = [0.875, 0.5, None, 0.75]
    steps = [{"step": name, "accuracy_held_out": share} for name, share in zip("abcd", shares, strict=True)]
    own = record(cell("rtn", "training", {"bits": 4}), realised={"steps": steps})
    words = "(accuracy on calibration sentences that were held out)"
    assert [text for text in figures(own, [own]) if "after step" in text] == [
        f"  after step a: 87.50% {words}",
        f"  after step b: 50.00%, -37.50 points {words}",
        f"  after step c: no finite number {words}",
        f"  after step d: 75.00% {words}",
    ]


def test_tokens_and_parameters_of_training_are_whole_numbers_in_the_table():
    figures_of_training = {"training_tokens": Estimate(2048), "trainable_parameters": Estimate(900)}
    own = record(cell("rtn", "training", {"bits": 4}), figures_of_training)
    row = table([own, record(cell("rtn", "training", {"bits": 3}))]).set_index("label")
    assert row.loc["smollm2_135m-rtn-4", ["training_tokens", "trainable_parameters"]].tolist() == [2048, 900]
    assert (row["training_tokens"].dtype, row["trainable_parameters"].dtype) == ("Int64", "Int64")
