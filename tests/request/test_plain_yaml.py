import pytest

from squeeze.core.errors import SqueezeError
from squeeze.request.plain_yaml import read_plain


def written(tmp_path, text):
    path = tmp_path / "choice.yaml"
    path.write_text(text)
    return path


def test_plain_data_passes_with_interpolations_left_alone(tmp_path):
    path = written(tmp_path, "name: x\nbits: ${bits}\nflag: true\nquoted: 'off'\nrate: 1e-3\nlist: [1, null]\n")
    assert read_plain(path) == {
        "name": "x", "bits": "${bits}", "flag": True, "quoted": "off", "rate": 0.001, "list": [1, None],
    }  # fmt: skip


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nbits: 0123\n", "choice.yaml:2: '0123' is ambiguous"),
        ("symmetric: off", "'off' is ambiguous"),
        ("symmetric: Yes", "'Yes' is ambiguous"),
        ("seconds: 1:30", "'1:30' is ambiguous"),
        ("token: ${oc.env:SQUEEZE_SECRET}", "is refused"),
        ("token: 'x ${bits}'", "is refused"),
        ("a: ${.b}\nb: 1", "is refused"),
        ("a: !!python/object/apply:os.system [echo]", "the tag"),
        ("a: !!str 3", "the tag"),
        ("a: &x [1]\nb: *x", "anchors"),
        ("bits: 4\nbits: 8", "duplicate"),
        ("a: [1", "not readable as YAML"),
        ("\xff: \x00", "not readable as YAML"),
        ("a: " + "[" * 5000, "nested more than 20 deep"),
        ("3", "holds no YAML mapping"),
    ],
)
def test_what_could_mislead_or_harm_is_refused_in_one_line(tmp_path, monkeypatch, text, reason):
    monkeypatch.setenv("SQUEEZE_SECRET", "hunter2")
    with pytest.raises(SqueezeError) as caught:
        read_plain(written(tmp_path, text))
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message
    assert "hunter2" not in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SqueezeError, match=r"nowhere\.yaml cannot be read \(No such file"):
        read_plain(tmp_path / "nowhere.yaml")
