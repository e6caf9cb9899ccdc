"""Write docs/trust.md: what squeeze promises, and what the tests that ``nox -s trust`` runs found."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from squeeze.core import environment
from squeeze.core.files import write_atomically

PROMISES = {
    1: "An acknowledged record is never lost or torn.",
    2: "Each requested cell ends in exactly one status.",
    3: "Resuming runs only what is missing.",
    4: "Time limits hold, and no process is left behind.",
    5: "No false winners: equal models are called different in at most 5 % of comparisons.",
    6: "Real differences are found: a slow-down of 10 % in at least 95 % of pairs, under measured noise.",
    7: "Timing is true.",
    8: "Unsteady data is flagged, and no verdict is given on a warm-up.",
    9: "Peak memory is right.",
    10: "Measuring barely disturbs.",
    11: "Compression is real: bits and zeros are recounted from what was saved.",
    12: "Quality is the compressed model's own.",
    13: "The same cell gives the same numbers.",
    14: "Unlike machines are never compared.",
    15: "Untrusted input can neither run nor leak anything.",
    16: "A cheat does not rank: it is refused, invalid, flagged or without effect; no honest row is.",
    17: "A fault of the environment is no verdict: the cell stays pending, and resuming finishes it.",
    18: "What differs by more than the margin is called equivalent in at most 5 % of comparisons.",
    19: "What decodes is what is scored.",
    20: "One bad record harms no other.",
}
HELD, BROKEN, NOT_SHOWN = "held", "**broken**", "**not shown**"


@dataclass(frozen=True)
class Proof:
    """Hold one test: its outcome (passed, failed or skipped), the promises that it shows, and what it found."""

    test: str
    outcome: str
    promises: tuple[int, ...]
    figures: tuple[str, ...]


def main() -> int:
    """Write the page, and return the exit code: 0 when every promise held, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="what `pytest tests -m promise --junitxml=REPORT` has left")
    parser.add_argument("--out", type=Path, default=Path("docs/trust.md"), help="(default: %(default)s)")
    options = parser.parse_args()
    report = ElementTree.parse(options.report)
    found = proofs(report)
    write_atomically(options.out, page(found, occasion(report)).encode())
    failed = {number: verdict for number in PROMISES if (verdict := judge(_of(number, found))) != HELD}
    for number, verdict in failed.items():
        print(f"promise {number} {verdict.strip('*')}: {PROMISES[number]}", file=sys.stderr)
    return 1 if failed else 0


def proofs(report: ElementTree.ElementTree) -> list[Proof]:
    """Return the tests of a JUnit report, in its order."""
    return [_proof(case) for case in report.iter("testcase")]


def judge(shown: Sequence[Proof]) -> str:
    """Tell whether a promise held: one failing test breaks it, and it takes at least one that passes to show it."""
    outcomes = {proof.outcome for proof in shown}
    return BROKEN if "failed" in outcomes else HELD if "passed" in outcomes else NOT_SHOWN


def page(found: Sequence[Proof], occasion: str) -> str:
    """Return the Markdown page. Raises ValueError for a test that shows a promise which is none of PROMISES."""
    if unknown := {number for proof in found for number in proof.promises} - PROMISES.keys():
        raise ValueError(f"tests show promises {sorted(unknown)}, expected some of {', '.join(map(str, PROMISES))}")
    held = sum(judge(_of(number, found)) == HELD for number in PROMISES)
    return "\n".join(
        [
            "# What squeeze promises, and what shows it\n",
            f"{held} of {len(PROMISES)} promises held: {occasion}.\n",
            "Made by `nox -s trust`, which anyone can run: it breaks things on purpose, with full counts, and writes",
            "down what the tests found. Nothing below is written by hand.\n",
            "| # | promise | found | verdict |",
            "| --: | :-- | :-- | :-- |",
            *(_row(number, _of(number, found)) for number in PROMISES),
            "\n## The tests\n",
            *(f"{number}. {_tests(_of(number, found))}" for number in PROMISES),
            "",
        ]
    )


def occasion(report: ElementTree.ElementTree) -> str:
    """Say when, on which machine and with which code the report was made; no name of a person or a host."""
    [suite] = report.iter("testsuite")
    hardware, software, code = environment.hardware(), environment.software(), environment.code()
    changed = ", changed" if code["dirty"] else ""
    return (
        f"{suite.get('tests')} tests in {float(suite.get('time', 'nan')) / 60:.0f} minutes on "
        f"{suite.get('timestamp', '')[:10]}, {hardware['cpu_model']} ({hardware['cores_logical']} logical cores, "
        f"{hardware['ram_gib']} GiB), {software['python']}, torch {software['versions']['torch']}, "
        f"commit {str(code['commit'])[:12]}{changed}"
    )


def _proof(case: ElementTree.Element) -> Proof:
    properties = [(entry.get("name"), entry.get("value", "")) for entry in case.iter("property")]
    parts = {child.tag for child in case}
    return Proof(
        test=f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '').partition('[')[0]}",
        outcome="failed" if parts & {"failure", "error"} else "skipped" if "skipped" in parts else "passed",
        promises=tuple(int(value) for name, value in properties if name == "promise"),
        figures=tuple(value for name, value in properties if name == "figure"),
    )


def _of(number: int, found: Iterable[Proof]) -> list[Proof]:
    return [proof for proof in found if number in proof.promises]


def _row(number: int, shown: Sequence[Proof]) -> str:
    figures = dict.fromkeys(text for proof in shown for text in proof.figures)
    counts = Counter(proof.outcome for proof in shown)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    cells = (str(number), PROMISES[number], "<br>".join(figures), f"{judge(shown)} ({outcomes or 'no test'})")
    return f"| {' | '.join(text.replace('|', '/') for text in cells)} |"


def _tests(shown: Iterable[Proof]) -> str:
    times = Counter(proof.test for proof in shown)
    return ", ".join(f"`{test}`" + (f" x {count}" if count > 1 else "") for test, count in times.items())


if __name__ == "__main__":
    sys.exit(main())
