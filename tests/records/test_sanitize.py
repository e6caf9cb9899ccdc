import json
from dataclasses import replace
from pathlib import Path

import pytest

from squeeze.records.sanitize import leaks, line, public
from tests.fabricated import smoke_records

RECORD = smoke_records()[-1]


def found(**changes):
    record = replace(RECORD, **changes)
    return list(leaks(record, json.dumps(record.to_json())))


@pytest.mark.parametrize(
    "secret",
    [
        "hf_abcdefghijklmnopqrstuvwxyz",
        "HF_TOKEN=abcdef0123456789",
        '{"AWS_SECRET_ACCESS_KEY": "abcdef0123456789"}',
        "https://x.org/?token=abcdef0123456789",
        "-----BEGIN RSA PRIVATE KEY-----",
        "Authorization: Bearer abcdef0123456789",
        *(
            f"{prefix}klmnopqrstuvwxyz0123456789"
            for prefix in ("ghs_", "gho_", "github_pat_", "glpat-", "sk-", "xoxb-")
        ),
        "AKIAKLMNOP0123456789",
        "https://x.org/?secret=abcdef0123456789",
        "password=abcdef0123456789",
        "MY_API_KEY: abcdef0123456789",
    ],
)
def test_secrets_are_found_and_not_repeated(secret):
    [what] = found(log_tail=f"failed: {secret}")
    assert "secret" in what
    assert "0123456789" not in what
    assert "klmnop" not in what


@pytest.mark.parametrize("path", ["/home/someone/model", "~/models/gpt2", "C:\\Users\\someone\\model"])
def test_absolute_paths_are_found(path):
    [what] = found(reason=f"no such file: {path}")
    assert "absolute path" in what


def test_the_name_of_the_user_is_found(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/jane"))
    assert found(log_tail="jane's model\n is too large") == ["its reason or log_tail holds the name of the user"]


def test_what_records_really_say_is_no_leak():
    words = "5 tokens/s of and/or 1/2; kernel GNU/Linux; https://example.org/a/b; org/model; prompt_tokens: 12345678"
    assert found(log_tail=words, environment={"protocol": {"token_budget": 1024000000}}) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[1;31mred\x1b[0m\nb", "ared b"),
        ("\x1b]0;title\x07\x1b]8;;https://x.org\x1b\\link", "link"),
        ("\x1b[2Jgone\x1b", "gone"),
        ("right\u202eto\u200bleft\x9b\x00", "right to left"),
        ("\ud800 half", "half"),
        ("as it is: 5 µs, 100 %", "as it is: 5 µs, 100 %"),
    ],
)
def test_a_line_cannot_steer_a_terminal(text, shown):
    assert line(text) == shown


def test_a_path_is_found_behind_a_colour():
    assert public("no \x1b[31m/home/someone/model\x1b[0m") == "no model"
