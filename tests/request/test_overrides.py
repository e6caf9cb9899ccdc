import pytest

from squeeze.core.errors import SqueezeError
from squeeze.request.overrides import edited, parse

TREE = {"protocol": {"rounds": 5, "latency": {"prompt": 128, "decode": 32}}, "steps": [{"bits": 4}, {"bits": 8}]}


def choices(group):
    return ["gptq", "magnitude", "rtn"] if group == "technique" else []


def values(text):
    (setting,) = parse([text], choices).values()
    return list(setting.values)


def edit(text):
    (setting,) = parse([text], choices).values()
    return edited(TREE, setting, setting.values[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bits=4", [4]),
        ("bits=8,4,3", [8, 4, 3]),
        ("bits=range(2,5)", [2, 3, 4]),
        ("sparsity=range(0.1,0.4,0.1)", [0.1, 0.2, 0.3]),
        ("bits=range(4,1,-1)", [4, 3, 2]),
        ("technique=glob(*,exclude=g*)", ["magnitude", "rtn"]),
        ("group_size=null", [None]),
        ("name='a,b',c", ["a,b", "c"]),
        ("tasks=[a,'b'],[c]", [["a", "b"], ["c"]]),
        ("bits=0123", ["0123"]),
        ("symmetric=off", ["off"]),
    ],
)
def test_values_are_read_in_hydras_grammar(text, expected):
    assert values(text) == expected


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["rtn"], "write KEY=VALUE"),
        (["bits=4,"], "is not an override"),
        (["bits=" + "[" * 3000], "is not an override"),
        (["bits=" + "9" * 5000], "is not an override"),
        (["bits=\udcff"], "is not an override"),
        (["bits=4", "+bits=8"], "'bits' is given twice"),
        (["bits=interval(1,2)"], "cannot be enumerated"),
        (["bits=range(1,2,0)"], "cannot be enumerated"),
        (["bits=range(1,9000000000)"], "expected 1 to 100000"),
        (["technique=glob(x*)"], "names 0 values"),
        (["hydra.run.dir=x"], "Hydra's own layout"),
        (["technique@model=rtn"], "Hydra's own layout"),
        (["~bits=4"], "write ~bits without a value"),
    ],
)
def test_what_cannot_be_enumerated_is_refused_in_one_line(texts, reason):
    with pytest.raises(SqueezeError) as caught:
        parse(texts, choices)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_edits_change_add_merge_and_delete_and_leave_the_original_alone():
    before = repr(TREE)
    assert edit("protocol.rounds=7")["protocol"]["rounds"] == 7
    assert edit("steps.1.bits=3")["steps"] == [{"bits": 4}, {"bits": 3}]
    assert edit("+steps.0.seed=1")["steps"][0] == {"bits": 4, "seed": 1}
    assert edit("+steps.2={bits:2}")["steps"][2] == {"bits": 2}
    assert edit("++steps.0.bits=2")["steps"][0] == {"bits": 2}
    assert edit("protocol.latency={decode:64}")["protocol"]["latency"] == {"prompt": 128, "decode": 64}
    assert edit("~protocol.latency.decode")["protocol"]["latency"] == {"prompt": 128}
    assert edit("~steps.0")["steps"] == [{"bits": 8}]
    assert repr(TREE) == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("protocol.ronds=7", "unknown option 'protocol.ronds'; did you mean 'rounds'?"),
        ("protcol.rounds=7", "unknown option 'protcol'; did you mean 'protocol'?"),
        ("steps.5.bits=3", "unknown option 'steps.5'; choose from: 0, 1"),
        ("+steps.7={bits:2}", "unknown option 'steps.7'"),
        ("+protocol.rounds=7", "is there already"),
        ("protocol.rounds.more=7", "unknown option 'protocol.rounds.more'"),
        ("~protocol.ronds", "unknown option 'protocol.ronds'"),
    ],
)
def test_a_path_that_is_not_there_is_named(text, reason):
    with pytest.raises(SqueezeError) as caught:
        edit(text)
    assert reason in str(caught.value)
