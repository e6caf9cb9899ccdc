"""Hostile configurations and models, given to the command line: each is answered in one line, soon, in little memory.

A case is its name, what makes it (in an empty folder; it returns the overrides of a run that meets it), and words that
the one line must have: which file, what is wrong, what is expected.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from squeeze import cli
from squeeze.core import cache
from squeeze.core.errors import SqueezeError
from squeeze.runner import run as runs
from tests.tiny import tiny_subject

Maker = Callable[[Path], list[str]]

SECONDS, BYTES = 5.0, 500 * 2**20  # of an answer: processor time, so that a busy machine fails nothing; memory beyond
HANGS = 120  # seconds after which it is no answer any more
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


def link_to(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def sparse(path: Path, size: int = 60_000_000) -> None:
    path.touch()
    os.truncate(path, size)


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


def configured(**changes: object) -> Callable[[Path], object]:
    """A model whose config.json says something else."""

    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def without(pattern: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return spoil


def cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 100)


def lost_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {
        "model.norm.weight": "model-00001-of-00002.safetensors",
        "lm_head.weight": "model-00002-of-00002.safetensors",
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def header(content: bytes, length: int | None = None) -> Callable[[Path], object]:
    return written("model.safetensors", struct.pack("<Q", len(content) if length is None else length) + content)


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no heads": (configured(num_attention_heads=0), r"says num_attention_heads 0, expected an integer from 1"),
    "heads in words": (configured(num_attention_heads="four"), r"says num_attention_heads 'four', expected an integer"),
    "endless layers": (
        configured(num_hidden_layers=10**12),
        r"says num_hidden_layers 10+, expected an integer from 1 to",
    ),
    "a larger vocabulary": (
        configured(vocab_size=300),
        r"says vocab_size 300, but the table model\.embed_tokens\.weight has 260 rows",
    ),
    "a pad token outside": (configured(pad_token_id=260), r"says pad_token_id 260, expected null or .* below 260"),
    "a missing library": (
        configured(quantization_config={"quant_method": "aqlm"}),
        r"quantized \(aqlm\), aqlm is not installed; run `pip install aqlm`, or give the model as it was",
    ),
    "quantized by nothing": (configured(quantization_config=3), r"says quantization_config 3, expected an object"),
    "a list for a configuration": (written("config.json", b"[1]"), r"config\.json: holds list, expected an object"),
    "no configuration": (
        without("config.json"),
        r"config\.json cannot be read \(No such file or directory\), expected a file",
    ),
    "a configuration cut off": (written("config.json", b'{"a": '), r"config\.json: not readable as JSON"),
    "a deep configuration": (written("config.json", b"[" * 10**6), r"config\.json: not readable as JSON"),
    "a configuration of 60 MB": (
        replaced("config.json", sparse),
        r"config\.json has 60,000,000 bytes, expected at most",
    ),
    "a configuration that waits": (
        replaced("config.json", os.mkfifo),
        r"config\.json is a FIFO, expected a regular file",
    ),
    "an endless configuration": (replaced("config.json", link_to("/dev/zero")), r"config\.json is a device"),
    "no tokenizer": (without("tokenizer*"), r"no tokenizer, expected one of tokenizer\.json.*save_pretrained"),
    "no weights": (without("*.safetensors"), r"no model\.safetensors, expected all weights as safetensors"),
    "weights that wait": (replaced("model.safetensors", os.mkfifo), r"no model\.safetensors, expected all weights"),
    "a lost shard": (lost_shard, r"index\.json names model-00002-of-00002\.safetensors, which is not there"),
    "an index of numbers": (
        written("model.safetensors.index.json", b'{"weight_map": {"a": 1}}'),
        r"is no index of weights",
    ),
    "weights cut off": (cut, r"model\.safetensors is cut off: [\d,]+ bytes, its header promises [\d,]+"),
    "a header of 8 TiB": (header(b"{}", 2**43), r"would have 8,796,093,022,208 of its 10 bytes, expected at most"),
    "a header that is none": (header(b"[1, 2]"), r"the header of model\.safetensors is damaged"),
    "offsets in words": (
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["x", "y"]}}'),
        r"the header of model\.safetensors is damaged",
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model as transformers saves it."""
    folder = tmp_path_factory.mktemp("model")
    subject = tiny_subject("llama")
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is not refused is not run; what hangs is ended."""

    def nothing_refused(*_: object) -> None:
        raise SqueezeError("nothing refused it")

    def hung(*_: object) -> None:
        raise AssertionError(f"no answer after {HANGS} s")

    monkeypatch.setattr(runs, "Executor", nothing_refused)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(HANGS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def peak() -> int:
    """The largest resident memory of this process since it was last asked, in bytes."""
    [found] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    Path("/proc/self/clear_refs").write_text("5")
    return int(found) * 1024


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command line answers a hostile request with."""
    peak()
    before, started = peak(), time.process_time()
    code = cli.main(arguments)
    seconds, grown = time.process_time() - started, peak() - before
    shown = capsys.readouterr()
    assert (code, shown.out) == (cli.USAGE, "")
    assert shown.err.startswith("error: ")
    assert shown.err.endswith("\n")
    assert shown.err[:-1].isprintable(), "one line, and nothing in it steers the terminal"
    assert len(shown.err) < 2000
    assert seconds < SECONDS
    assert grown < BYTES
    return shown.err


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


def run_of(model: Path, folder: Path) -> list[str]:
    request = ["model=tiny_llama", f"model.source=file:{model}", "technique=none", "protocol=smoke"]
    return ["run", *request, "--results", str(folder / "results")]


@pytest.mark.promise(15)
@pytest.mark.parametrize("name", MODELS)
def test_a_hostile_model_is_answered_in_one_line(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = MODELS[name]
    folder = tmp_path / "mine"
    shutil.copytree(model, folder)
    spoil(folder)
    said = answer(capsys, *run_of(folder, tmp_path))
    assert re.search(words, said), said
    assert "delete" not in said, "it is the user's own"


@pytest.mark.promise(15)
def test_a_sound_model_passes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(run_of(model, tmp_path)) == cli.USAGE
    assert capsys.readouterr().err.endswith("error: nothing refused it\n")
