import random
from dataclasses import replace

import pandas as pd
import pytest

from squeeze.boards import table
from squeeze.boards.table import read
from squeeze.core.errors import SqueezeError
from squeeze.records.answers import Margins
from squeeze.records.record import Estimate, Status
from squeeze.records.store import RecordStore
from tests.fabricated import MODEL, PROTOCOL, cell, record, smoke_records, too_good

REQUIRED = [
    *("rank", "model", "technique", "family", "bits", "sparsity", "effective_bits", "bytes", "compression_ratio"),
    *("load_peak_bytes", "prefill_peak_bytes", "decode_peak_bytes", "ttft_ms", "decode_tokens_per_s"),
    *("decode_speedup", "decode_speedup_low", "decode_speedup_high", "perplexity", "perplexity_delta"),
    *("perplexity_delta_low", "perplexity_delta_high", "bits_per_byte", "kl_divergence", "top1_agreement"),
    *("acc_lambada", "acc_lambada_stderr", "acc_sciq", "acc_sciq_stderr", "build_seconds", "build_peak_bytes"),
    *("bytes_real", "memory_real", "compute_real", "batch_dependent", "speed_baseline", "status", "reason"),
    *("protocol", "device", "fingerprint", "key"),
]


def tabulate(records):
    return table.table(records)


def test_the_published_columns_are_there_in_order():
    columns = list(tabulate(smoke_records()).columns)
    assert [name for name in columns if name in REQUIRED] == REQUIRED
    assert len(set(columns)) == len(columns)


def test_a_row_says_what_its_record_says():
    [row] = tabulate([smoke_records()[6]]).to_dict("records")
    expected = {
        "model": "smollm2_135m",
        "technique": "rtn",
        "family": "quantization",
        "label": "smollm2_135m-rtn-4-g64",
        "bits": 4,
        "group_size": 64,
        "bytes": 112_000_000,
        "decode_speedup": 1.65,
        "decode_speedup_low": pytest.approx(1.65 * 0.97),
        "perplexity": 20.0,
        "acc_sciq_stderr": 0.046,
        "mbu": 0.4,
        "compute_real": True,
        "speed_baseline": "float32",
        "status": "ok",
        "protocol": "smoke",
        "device": "cpu",
        "fingerprint": "f" * 64,
    }
    assert {name: row[name] for name in expected} == expected


def test_failed_cells_are_rows_without_rank_and_count_against_coverage():
    frame = tabulate(smoke_records()).set_index("label")
    failed = frame.loc["smollm2_135m-bnb_int8-3"]
    assert (failed["status"], failed["stage"]) == ("unsupported", "build")
    assert "expected 4 or 8" in failed["reason"]
    assert pd.isna(failed["rank"])
    assert failed["coverage"] == frame.loc["smollm2_135m-bnb_int8-8", "coverage"] == "1/2"
    assert frame.loc["smollm2_135m-rtn-4-g64", "coverage"] == "5/5"


def test_ranks_follow_significance_not_the_mean():
    ranks = tabulate(smoke_records()).set_index("label")["rank"]
    assert ranks["smollm2_135m-none-bfloat16"] == ranks["smollm2_135m-rtn-8-g64"] == 1  # 13.46 and 13.50
    assert ranks["smollm2_135m-rtn-4-g64"] == ranks["smollm2_135m-bnb_fp4-4"]  # 20.0 and 20.2
    assert ranks["smollm2_135m-rtn-2-g64"] == 11


def test_only_the_newest_attempt_of_a_cell_counts():
    old = smoke_records()[6]
    new = replace(old, attempt="new", finished="2026-02-01T00:00:00+00:00", estimates={"perplexity": Estimate(19.0)})
    assert tabulate([new, old])["perplexity"].tolist() == [19.0]
    assert tabulate([old, new])["perplexity"].tolist() == [19.0]
    failed = replace(new, status=Status.CRASHED, finished="2026-03-01T00:00:00+00:00", estimates={})
    assert tabulate([failed, old, new])["status"].tolist() == ["crashed"]
    rebuilt = replace(new, artifact_key="another")
    assert len(tabulate([old, rebuilt])) == 2


def test_an_official_attempt_counts_before_a_newer_shared_one():
    official = smoke_records()[6]
    later = {"attempt": "later", "finished": "2026-02-01T00:00:00+00:00", "estimates": {"perplexity": Estimate(19.0)}}
    shared = replace(official, isolation="shared", **later)
    assert tabulate([official, shared])["attempt"].tolist() == [official.attempt]
    assert tabulate([shared, official])["isolation"].tolist() == ["process"]
    latest = replace(shared, attempt="latest", finished="2026-03-01T00:00:00+00:00")
    assert tabulate([shared, latest])["attempt"].tolist() == ["latest"]
    failed = replace(official, status=Status.CRASHED, estimates={})
    assert tabulate([failed, shared])["status"].tolist() == ["crashed"]


@pytest.mark.parametrize(
    "unlike",
    [
        {"fingerprint": "another machine"},
        {"cell": cell("rtn", "quantization", {"bits": 2}, protocol={**PROTOCOL, "rounds": 7}).to_json()},
        {"cell": cell("rtn", "quantization", {"bits": 2}, model={**MODEL, "name": "gpt2"}).to_json()},
    ],
)
def test_unlike_rows_are_never_ranked_together(unlike):
    best, worst = (smoke_records()[index] for index in (0, 9))
    together = tabulate([best, worst])
    assert together["rank"].tolist() == [1, 2]
    apart = tabulate([best, replace(worst, key="other", **unlike)])
    assert apart["rank"].tolist() == [1, 1]
    assert apart["board"].nunique() == 2


def test_the_dtype_of_the_baseline_does_not_part_a_board():
    single = cell("none", "baseline", {}, model={**MODEL, "dtype": "float32"})
    assert tabulate([smoke_records()[0], record(single)])["board"].nunique() == 1


def test_what_is_asked_of_trained_rows_alone_does_not_part_a_board():
    ood = {**PROTOCOL, "perplexity_ood": {"corpus": "speeches"}}
    trained = cell("qat", "quantization", {"bits": 3}, protocol=ood)
    frame = tabulate([smoke_records()[0], record(trained, {"perplexity_ood": Estimate(40.0)})])
    assert frame["board"].nunique() == 1
    assert frame["perplexity_ood"].tolist() == pytest.approx([float("nan"), 40.0], nan_ok=True)


def with_speedup(name, value, p_value, flags=(), spread=0.1):
    subject = cell("rtn", "quantization", {"bits": name})
    speedup = Estimate(value, value * (1 - spread), value * (1 + spread), p_value, 5)
    if p_value is None:
        speedup = Estimate(value, n=3)
    return record(subject, {"decode_speedup": speedup}, flags=flags)


def test_speed_verdicts_are_corrected_over_the_board():
    alone = tabulate([with_speedup(2, 1.2, 0.04)])
    assert alone["decode_speedup_verdict"].tolist() == ["faster"]
    rows = [with_speedup(2, 1.2, 0.04), with_speedup(3, 1.1, 0.3), with_speedup(4, 0.5, 0.001)]
    verdicts = tabulate(rows).set_index("bits")["decode_speedup_verdict"]
    assert verdicts.to_dict() == {2: "undecided", 3: "undecided", 4: "slower"}


def test_a_model_beside_itself_is_no_test_and_weighs_on_no_other():
    same = Estimate(0.0, 0.0, 0.0, 1.0, 16)
    worse = Estimate(2.0, 1.0, 3.0, 0.04, 16)
    baseline, other = smoke_records()[0], smoke_records()[5]
    rows = [
        replace(baseline, estimates={**baseline.estimates, "perplexity_delta": same}),
        replace(other, estimates={"perplexity": Estimate(15.5), "perplexity_delta": worse}),
    ]
    assert tabulate(rows)["perplexity_delta_verdict"].tolist() == ["equal", "worse"]


def test_rows_that_warm_up_and_too_few_rounds_have_no_speed_verdict_but_a_reason():
    warming = with_speedup(2, 3.0, 0.9, flags=("grid_flattered", "warming"))
    few = with_speedup(3, 3.0, None)
    # and they do not weigh on those who can have one
    steady = with_speedup(4, 1.2, 0.04)
    rows = tabulate([warming, few, steady]).set_index("bits")
    assert rows["decode_speedup_verdict"].to_dict() == {2: "?", 3: "?", 4: "faster"}
    assert rows["verdict_reason"].to_dict() == {
        2: "decode_speedup: warming: every process moved the same way by over 10 %",
        3: "decode_speedup: 3 rounds, 5 are needed",
        4: "",
    }


@pytest.mark.promise(16)
@pytest.mark.parametrize(
    ("flag", "speed", "perplexity"), [("decode != score", "?", "worse"), ("not causal", "faster", "?")]
)
def test_a_row_whose_speed_or_quality_is_another_models_has_no_rank_and_no_such_verdict(flag, speed, perplexity):
    honest = smoke_records()
    timed = {**honest[6].estimates, "decode_speedup": Estimate(3.0, 2.9, 3.1, p_value=1e-6, n=8)}
    frame = tabulate([*honest[:6], replace(honest[6], flags=(flag,), estimates=timed), *honest[7:]]).set_index("label")
    cheat, next_one = frame.loc["smollm2_135m-rtn-4-g64"], frame.loc["smollm2_135m-bnb_fp4-4"]
    assert pd.isna(cheat[["rank", "rank_low", "rank_high", "group"]]).all()
    assert (cheat["decode_speedup_verdict"], cheat["perplexity_delta_verdict"]) == (speed, perplexity)
    assert f": {flag}" in cheat["verdict_reason"]
    assert next_one["rank_high"] == 6  # it weighs on no other row: 7 where both have a rank


def test_unsteady_times_inform_and_take_no_verdict_away():
    rows = tabulate([with_speedup(2, 3.0, 1e-9, flags=("unsteady",))])
    assert rows["decode_speedup_verdict"].tolist() == ["faster"]
    assert rows["flags"].tolist() == ["unsteady"]


def test_three_answers_with_what_remains_and_what_is_detectable():
    rows = [with_speedup(2, 1.0, 0.9, spread=0.02), with_speedup(3, 1.0, 0.8), with_speedup(4, 1.02, 1e-4, spread=0.01)]
    found = tabulate(rows).set_index("bits")
    assert found["decode_speedup_verdict"].to_dict() == {2: "equal", 3: "undecided", 4: "faster"}
    assert found["decode_speedup_within"].to_dict() == {2: 0.05, 3: pytest.approx(1 / 0.9 - 1), 4: 0.05}
    assert 0.02 < found["decode_speedup_detectable"][2] < 0.04 < found["decode_speedup_detectable"][3]
    wide = table.table(rows, Margins(speed=0.15)).set_index("bits")
    assert wide["decode_speedup_verdict"][3] == "equal"
    assert set(wide["margins"]) == {"speed=0.15,perplexity=0.01,accuracy=0.01,kl=0.01"}


def test_every_comparison_has_its_verdict_and_its_own_family():
    """Batches, prefill, perplexity and accuracy; the many tests of one metric do not weigh on another."""
    names = ("decode_speedup", "decode_speedup_b8", "ttft_speedup", "ttft_speedup_b8")
    timed = {name: Estimate(1.2, 1.1, 1.3, 0.03, 8) for name in names}
    quality = {
        "perplexity": Estimate(10.05),
        "perplexity_delta": Estimate(0.05, 0.04, 0.06, 0.03, 16),
        "acc_sciq_delta": Estimate(-0.1, -0.18, -0.02, 0.03, 100),
    }
    [row] = tabulate([record(cell("rtn", "quantization", {"bits": 2}), timed | quality)]).to_dict("records")
    assert {row[f"{name}_verdict"] for name in names} == {"faster"}
    assert (row["perplexity_delta_verdict"], row["perplexity_delta_within"]) == ("worse", 0.01)  # 0.5 %
    assert row["acc_sciq_delta_verdict"] == "worse"
    assert row["acc_sciq_delta_detectable"] == pytest.approx(0.114, abs=0.005)
    assert row["verdict_reason"] == ""


def test_a_rank_is_a_range_and_groups_share_letters():
    rows = tabulate(smoke_records()).set_index("label")
    same, worst = rows.loc["smollm2_135m-rtn-4-g64"], rows.loc["smollm2_135m-rtn-2-g64"]
    assert (same["rank"], same["rank_low"], same["rank_high"]) == (6, 6, 7)
    assert same["group"] == rows.loc["smollm2_135m-bnb_fp4-4", "group"] != worst["group"]
    assert (worst["rank_low"], worst["rank_high"]) == (11, 11)
    assert pd.isna(rows.loc["smollm2_135m-bnb_int8-3", "rank_high"])


def test_perplexity_has_its_verdict():
    verdicts = tabulate(smoke_records()).set_index("label")["perplexity_delta_verdict"]
    assert verdicts["smollm2_135m-rtn-4-g64"] == "worse"
    assert verdicts["smollm2_135m-rtn-8-g64"] == "equal"
    assert pd.isna(verdicts["smollm2_135m-none-bfloat16"])


def test_a_row_that_is_too_good_is_flagged_and_has_neither_rank_nor_verdict():
    honest = smoke_records()
    frame = tabulate([*honest[:6], too_good(honest[6]), *honest[7:]]).set_index("label")
    cheat = frame.loc["smollm2_135m-rtn-4-g64"]
    assert cheat["flags"] == "implausible"
    assert pd.isna(cheat[["rank", "rank_low", "rank_high", "group"]]).all()
    assert (cheat["perplexity_delta_verdict"], cheat["status"]) == ("?", "ok")
    assert "perplexity_delta: implausible: it predicts the text 5.98 nats" in cheat["verdict_reason"]
    assert frame.loc["smollm2_135m-none-bfloat16", "rank"] == 1
    assert frame.drop(index=cheat.name)["flags"].eq("").all()
    assert "doubt" not in frame


def test_the_table_does_not_depend_on_the_order_of_records(monkeypatch):
    records = smoke_records()
    expected = tabulate(records)
    random.Random(0).shuffle(records)
    monkeypatch.setattr(table, "ROWS_AT_ONCE", 5)
    pd.testing.assert_frame_equal(tabulate(records), expected)


def test_files_that_are_no_records_are_named_and_left_alone(tmp_path, capsys):
    store = RecordStore(tmp_path)
    store.prepare()
    whole = store.write(smoke_records()[6])
    foreign = {"torn.json": b'{"schema": 1, "key":', "foreign.json": b"[]", "binary.json": b"\x00\xff"}
    for name, content in foreign.items():
        (store.folder / name).write_bytes(content)
    text = (store.folder / f"smollm2_135m-rtn-4-g64-{whole.attempt}.json").read_text()
    (store.folder / "odd.json").write_text(text.replace('"steps":[', '"paces":['))
    assert len(read(tmp_path)) == 1
    told = capsys.readouterr().err
    assert all(name in told for name in (*foreign, "odd.json"))
    assert {path.name: path.read_bytes() for path in store.folder.iterdir() if path.name in foreign} == foreign


def test_an_empty_folder_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(SqueezeError, match="squeeze run"):
        read(tmp_path)
