"""docs/trust.md says what the tests found: no promise is held without a test that passed, none with one that failed."""

import sys
from xml.etree import ElementTree

import pytest

from scripts import trust
from scripts.trust import PROMISES, main, occasion, page, proofs


def case(*promises, name="test_it[a]", figure="", outcome=""):
    values = [("promise", str(number)) for number in promises] + [("figure", figure)] * bool(figure)
    properties = "".join(f'<property name="{kind}" value="{value}"/>' for kind, value in values)
    attributes = f'classname="tests.faults.test_kills" name="{name}"'
    return f"<testcase {attributes}><properties>{properties}</properties>{outcome}</testcase>"


def report(*cases):
    attributes = f'tests="{len(cases)}" time="90" timestamp="2026-01-02T03:04:05"'
    return ElementTree.ElementTree(
        ElementTree.fromstring(f"<testsuites><testsuite {attributes}>{''.join(cases)}</testsuite></testsuites>")
    )


def row(text, number):
    return next(line for line in text.splitlines() if line.startswith(f"| {number} |"))


def test_figures_and_verdicts_stand_beside_their_promise():
    cases = [
        case(1, figure="200 kills: 0 | lost"),
        case(1, 4, name="test_it[b]", figure="gone in 2 s"),
        case(2, figure="odd", outcome="<failure/>"),
        case(2),
        case(3, outcome="<skipped/>"),
        case(5, outcome="<error/>"),
    ]
    text = page(proofs(report(*cases)), "today")
    assert row(text, 1) == f"| 1 | {PROMISES[1]} | 200 kills: 0 / lost<br>gone in 2 s | held (2 passed) |"
    assert row(text, 4) == f"| 4 | {PROMISES[4]} | gone in 2 s | held (1 passed) |"
    assert row(text, 2).endswith("| **broken** (1 failed, 1 passed) |")
    assert row(text, 3).endswith("| **not shown** (1 skipped) |")
    assert row(text, 5).endswith("| **broken** (1 failed) |")
    assert row(text, 6).endswith("| **not shown** (no test) |")
    assert "\n1. `tests/faults/test_kills.py::test_it` x 2\n" in text
    assert text.startswith(
        f"# What squeeze promises, and what shows it\n\n2 of {len(PROMISES)} promises held: today.\n"
    )


def test_a_promise_that_was_never_made_is_refused():
    with pytest.raises(ValueError, match=rf"promises \[99\], expected some of 1, 2, .*, {max(PROMISES)}$"):
        page(proofs(report(case(99))), "today")


def test_the_occasion_names_machine_and_commit_and_no_place():
    words = occasion(report(case(1)))
    assert words.startswith("1 tests in 2 minutes on 2026-01-02, ")
    assert ", commit " in words
    assert "/" not in words


@pytest.mark.parametrize(("left_out", "code"), [(None, 0), (7, 1)])
def test_the_page_is_written_and_the_exit_code_tells(tmp_path, monkeypatch, capsys, left_out, code):
    path, out = tmp_path / "report.xml", tmp_path / "docs" / "trust.md"
    report(*(case(number) for number in PROMISES if number != left_out)).write(path)
    monkeypatch.setattr(sys, "argv", ["trust", str(path), "--out", str(out)])
    assert main() == code
    assert f"{len(PROMISES) - code} of {len(PROMISES)} promises held" in out.read_text()
    assert capsys.readouterr().err == (f"promise 7 not shown: {PROMISES[7]}\n" if left_out else "")


def test_every_promise_is_one_sentence():
    assert list(PROMISES) == sorted(PROMISES)
    assert all(text.endswith(".") for text in trust.PROMISES.values())
