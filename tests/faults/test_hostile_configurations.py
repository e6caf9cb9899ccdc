"""Hostile configurations, given to the command line: each is answered in one line, soon, in little memory.

A case is its name, what makes it (in an empty folder; it returns the overrides of a run that meets it), and words that
the one line must have: which file, what is wrong, what is expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.answers import answer, aside, link_to, sparse  # noqa: F401 - a fixture

Maker = Callable[[Path], list[str]]

RTN = "{_target_: rtn.RoundToNearest, bits: 4, group_size: 64, symmetric: true}"


def technique(content: str | bytes) -> Maker:
    """A technique's YAML file."""

    def make(folder: Path) -> list[str]:
        path = place(folder, "technique")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return ["technique=bad"]

    return make


def entry(group: str, make_entry: Callable[[Path], object]) -> Maker:
    """What should be the file of a choice, and is none."""

    def make(folder: Path) -> list[str]:
        make_entry(place(folder, group))
        return [f"{group}=bad"]

    return make


def overrides(*texts: str) -> Maker:
    """Nothing but overrides."""
    return lambda _: list(texts)


def place(folder: Path, group: str) -> Path:
    (folder / group).mkdir(exist_ok=True)
    return folder / group / "bad.yaml"


def own_text(make_text: Callable[[Path], object]) -> Maker:
    """What should be a calibration text."""

    def make(folder: Path) -> list[str]:
        make_text(folder / "mine.txt")
        return ["technique=gptq", f"calibration.corpus=file:{folder / 'mine.txt'}"]

    return make


def own_questions(line: str) -> Maker:
    """What should be questions."""

    def make(folder: Path) -> list[str]:
        (folder / "quiz.jsonl").write_text(line)
        return ["technique=none", f"protocol.tasks=['file:{folder / 'quiz.jsonl'}']"]

    return make


def steering_name(folder: Path) -> list[str]:
    path = place(folder, "technique")
    path.write_text("family: pruning\nsteps: []\n")
    path.rename(path.with_name("\x1b[31mred\nerror: two\udcff.yaml"))
    return ["technique=nobody"]


def many_names(folder: Path) -> list[str]:
    path = place(folder, "sweep")
    for number in range(2000):
        path.with_name(f"s{number}.yaml").write_text("grids: [technique=none]\n")
    return ["sweep=nobody"]


def config_fifo(folder: Path) -> list[str]:
    os.mkfifo(folder / "config.yaml")
    return ["technique=none"]


CONFIGURATIONS: dict[str, tuple[Maker, str]] = {
    "a folder": (entry("technique", Path.mkdir), r"bad\.yaml is a directory, expected a regular file"),
    "a FIFO": (entry("protocol", os.mkfifo), r"bad\.yaml is a FIFO, expected a regular file"),
    "a device": (entry("model", link_to("/dev/zero")), r"bad\.yaml is a device, expected a regular file"),
    "a link to nothing": (entry("calibration", link_to("gone")), r"bad\.yaml is a link to nothing, expected a file"),
    "a link to itself": (entry("runtime", link_to("bad.yaml")), r"bad\.yaml is a link to nothing, expected a file"),
    "a sweep that is a folder": (entry("sweep", Path.mkdir), r"bad\.yaml is a directory, expected a regular file"),
    "a config.yaml that is a FIFO": (config_fifo, r"config\.yaml is a FIFO, expected a regular file"),
    "60 MB": (entry("technique", sparse), r"bad\.yaml has 60,000,000 bytes, expected at most 32,768"),
    "5,000 digits": (technique("family: x\nsteps: []\nn: " + "9" * 5000), r"bad\.yaml:3: a number of 5,000 digits"),
    "hexadecimal": (technique("family: x\nsteps: []\nn: 0x" + "f" * 9000), r"bad\.yaml:3: a number of 9,002 digits"),
    "nested lists": (technique("family: x\nsteps: " + "[" * 9000), r"bad\.yaml:2: nested more than 20 deep"),
    "nested blocks": (
        technique("family: x\nsteps:\n" + "".join(f"{' ' * n}-\n" for n in range(1, 99))),
        r"nested more than 20 deep",
    ),
    "a billion laughs": (
        technique("a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(40))),
        r"bad\.yaml:1: anchors and aliases are not read; write the value out",
    ),
    "10,000 steps": (
        technique("family: x\nsteps:\n" + f"- {RTN}\n" * 10_000),
        r"bad\.yaml has [\d,]+ bytes, expected at most 32,768",
    ),
    "300 steps": (
        technique("family: quantization\nsteps:\n" + f"- {RTN}\n" * 300),
        r"technique\.steps: 300 steps, expected at most 64",
    ),
    "10,000 steps in an override": (
        overrides("technique=rtn", f"technique.steps=[{','.join([RTN] * 10_000)}]"),
        r"is too long, expected at most 8,192 characters",
    ),
    "10,000 values": (
        overrides("technique=rtn", f"bits={','.join(map(str, range(1, 10_001)))}"),
        r"\([\d,]+ characters\) is too long",
    ),
    "1,500 values of one field": (
        overrides("technique=none", f"protocol.latency.batch_sizes=[{','.join(map(str, [*range(1, 1_500), 1]))}]"),
        r"batch_sizes: \[1, 2, 3.* is not allowed; expected a list of different positive integers",
    ),
    "a text of 8,000 characters": (
        overrides("technique=" + "x" * 8_000),
        r"unknown technique 'x+\.\.\. \(8,002 characters\)",
    ),
    "other encodings": (technique("family: x\nsteps: []\n".encode("utf-16")), r"bad\.yaml: no UTF-8 text \(byte 0\)"),
    "bytes": (technique(b"family: x\nsteps: []\nnote: \xff\n"), r"bad\.yaml: no UTF-8 text \(byte 26\)"),
    "NUL": (technique(b"family: x\nsteps: []\nnote: \0\n"), r"bad\.yaml: not readable as YAML"),
    "an escaped escape": (
        technique('family: "\\e[31m"\nsteps: []\n'),
        r"bad\.yaml:1: '\\x1b\[31m' holds control characters; remove them",
    ),
    "half a character": (technique('family: "\\ud800"\nsteps: []\n'), r"bad\.yaml:1: '\\ud800' holds control"),
    "a name that steers": (steering_name, r"unknown technique 'nobody'; choose from: red error: two"),
    "2,000 names": (many_names, r"unknown sweep 'nobody'; choose from: .* and 1,9\d\d more"),
    "a name that climbs": (overrides("technique=../model/gpt2"), r"unknown technique '\.\./model/gpt2'"),
    "a name in a file that climbs": (
        technique("name: ../../../up\nfamily: pruning\nsteps: []\n"),
        r"technique\.name: '\.\./\.\./\.\./up' is not allowed; expected a name of letters",
    ),
    "no code for so many bits": (
        overrides("technique=rtn,gptq", "bits=7"),
        r"steps\.0\.bits: 7 is not allowed; rtn\.RoundToNearest has code for 8, 4, 3, 2",
    ),
    "a text that waits": (own_text(os.mkfifo), r"mine\.txt is a FIFO, expected a regular file"),
    "a text without end": (own_text(link_to("/dev/zero")), r"mine\.txt is a device, expected a regular file"),
    "a text of 80 MB": (
        own_text(lambda path: sparse(path, 80_000_000)),
        r"mine\.txt has 80,000,000 bytes, expected at most",
    ),
    "questions that bring code": (
        own_questions('{"context": "a", "choices": ["b", "c"], "gold": 0, "process_docs": "!function os.system"}'),
        r"quiz\.jsonl:1: .*, expected an object of choices, context, gold",
    ),
    "questions that are none": (own_questions("\x00" * 9000), r"quiz\.jsonl:1: not readable as JSON"),
    "a random model without a seed": (
        overrides("model=tiny_llama", "~model.seed"),
        r"model\.seed is missing: random:llama must be pinned to an integer of at least 0",
    ),
}


@pytest.mark.promise(15)
@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("command", ["list", "run"])
def test_a_hostile_configuration_is_answered_in_one_line(
    name: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = CONFIGURATIONS[name]
    (tmp_path / "conf").mkdir()
    asked = make(tmp_path / "conf")
    said = answer(
        capsys, command, *asked, "--config-dir", str(tmp_path / "conf"), "--results", str(tmp_path / "results")
    )
    assert re.search(words, said), said
