"""Hostile records and samples, each by name: what a broken disk, another version or somebody who wants rank 1 leaves.

RECORDS are put beside good ones: each must be passed over. SAMPLES belong to a record that is good in itself.
"""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from squeeze.request.cell import Cell

Data = dict[str, Any]
Arrays = dict[str, Any]
ESCAPE = "\x1b[31mred\x1b[0m"


def spoilt(change: Callable[[Data], Any]) -> Callable[[Path, Data], None]:
    """A record with one change, its key that of its cell: only the change is wrong."""

    def place(path: Path, data: Data) -> None:
        change(data)
        try:
            data["key"] = Cell.from_json(data["cell"]).key
        except Exception:  # a cell that has none
            data["key"] = "0" * 64
        path.write_bytes(json.dumps(data, skipkeys=True).encode())

    return place


def text(change: Callable[[bytes], bytes]) -> Callable[[Path, Data], None]:
    def place(path: Path, data: Data) -> None:
        path.write_bytes(change(json.dumps(data).encode()))

    return place


def thing(make: Callable[[Path], Any]) -> Callable[[Path, Data], None]:
    def place(path: Path, _: Data) -> None:
        make(path)

    return place


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"x": value}
    return value


def long_file(size: int) -> Callable[[Path], None]:
    """A file of this size, that takes no room on the disk."""

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def estimate(name: str, /, **parts: Any) -> Callable[[Data], Any]:
    return lambda data: data["estimates"].update({name: {"value": 1.5, **parts}})


def part(name: str, /, **entries: Any) -> Callable[[Data], Any]:
    return lambda data: data[name].update(entries)


def of_cell(name: str, /, **entries: Any) -> Callable[[Data], Any]:
    return lambda data: data["cell"][name].update(entries)


def step(**entries: Any) -> Callable[[Data], Any]:
    return lambda data: data["cell"]["technique"]["steps"][0].update(entries)


def field(**entries: Any) -> Callable[[Data], Any]:
    return lambda data: data.update(entries)


SPOILT: Mapping[str, Callable[[Data], Any]] = {
    "value null": estimate("perplexity", value=None),
    "value in words": estimate("perplexity", value="18"),
    "value true": estimate("perplexity", value=True),
    "value nan": estimate("perplexity", value=float("nan")),
    "value infinite": estimate("perplexity", value=float("inf")),
    "value of 400 digits": estimate("perplexity", value=10**400),
    "value a list": estimate("perplexity", value=[1]),
    "no value": lambda data: data["estimates"]["perplexity"].pop("value"),
    "estimate with more": estimate("perplexity", colour="red"),
    "estimate null": lambda data: data["estimates"].update(perplexity=None),
    "low alone": estimate("decode_speedup", low=1.0, n=5),
    "p-value of 7": estimate("decode_speedup", p_value=7),
    "n negative": estimate("decode_speedup", n=-1),
    "n a half": estimate("decode_speedup", n=0.5),
    "bytes beyond integers": estimate("bytes", value=1e300),
    "peak beyond integers": estimate("some_peak_bytes", value=1e19),
    "figure with a bad name": estimate("[/red]x"),
    "figure called as a bound": estimate("perplexity_low"),
    "figure called as a verdict": estimate("decode_speedup_verdict"),
    "estimates a list": field(estimates=[1]),
    "block_nll of words": field(block_nll=["a"]),
    "block_nll null": field(block_nll=None),
    "block_nll of lists": field(block_nll=[[1.0]]),
    "block_nll infinite": field(block_nll=[float("inf")] * 16),
    "block_nll beyond float32": field(block_nll=[1e300] * 16),
    "flags nested": field(flags=[["unsteady"]]),
    "flags a word": field(flags="unsteady"),
    "flags with an escape": field(flags=[ESCAPE]),
    "lone surrogate": field(reason="\ud800"),
    "lone surrogate in a label": of_cell("model", name="\udc80"),
    "escape in a label": of_cell("model", name=ESCAPE),
    "bell in a family": of_cell("technique", family="\x07"),
    "right to left": of_cell("technique", name="rtn\u202e4"),
    "family of 400 letters": of_cell("technique", family="f" * 400),
    "label of 4000 letters": of_cell("technique", name="f" * 4000),
    "environment empty": field(environment={}),
    "environment null": field(environment=None),
    "environment without software": lambda data: data["environment"].pop("software"),
    "hardware a word": part("environment", hardware="fast"),
    "versions a list": lambda data: data["environment"]["software"].update(versions=[1]),
    "version a number": lambda data: data["environment"]["software"].update(versions={"torch": 2}),
    "escape in the environment": lambda data: data["environment"]["hardware"].update(cpu_model=ESCAPE),
    "claimed a list": field(claimed=[]),
    "claimed bits a list": part("claimed", bits=[4]),
    "claimed bits in words": part("claimed", bits="four"),
    "claimed sparsity an object": part("claimed", sparsity={}),
    "realised null": field(realised=None),
    "realised words for a figure": lambda data: (data["estimates"].pop("bytes"), part("realised", bytes="x")(data)),
    "realised truth for a figure": lambda data: (data["estimates"].pop("mbu"), part("realised", mbu=True)(data)),
    "realised control": part("realised", control="none"),
    "realised price": part("realised", price_per_hour="x"),
    "realised baseline a list": part("realised", speed_baseline=[1]),
    "realised huge": part("realised", levels=10**40),
    "stages a list": field(stages=[1]),
    "stages in words": part("stages", build="long"),
    "stages infinite": part("stages", build=float("inf")),
    "stages of a million years": part("stages", build=3e13),
    "stages with markup": part("stages", **{"[/x]": 1.0}),
    "samples a list": field(samples=["x.npz"]),
    "samples without a hash": field(samples={"file": "x.npz"}),
    "samples elsewhere": part("samples", file="../../x.npz"),
    "samples a number": part("samples", sha256=5),
    "status unknown": field(status="splendid"),
    "schema of tomorrow": field(schema=99),
    "schema true": field(schema=True),
    "schema a list": field(schema=[1]),
    "finished in words": field(finished="z" * 25),
    "finished on no day": field(finished="2026-13-45T00:00:00+00:00"),
    "started a number": field(started=5),
    "attempt with slashes": field(attempt="../../x"),
    "artifact key a path": field(artifact_key="../../etc"),
    "unknown field": field(colour="red"),
    "no estimates": lambda data: data.pop("estimates"),
    "cell null": field(cell=None),
    "cell without a model": lambda data: data["cell"].pop("model"),
    "cell without a dtype": lambda data: data["cell"]["model"].pop("dtype"),
    "cell with more": lambda data: data["cell"].update(colour="red"),
    "model a list": lambda data: data["cell"].update(model=[]),
    "steps an object": of_cell("technique", steps={"bits": 4}),
    "steps of words": of_cell("technique", steps=["rtn"]),
    "bits a list": step(bits=[4]),
    "bits of 40 digits": step(bits=10**40),
    "sparsity in words": step(sparsity="half"),
    "replicate in words": lambda data: data["cell"].update(replicate="one"),
    "latency a list": of_cell("protocol", latency=[1]),
    "prompt of no token": of_cell("protocol", latency={"prompt_tokens": 0}),
    "seed negative": of_cell("protocol", seed=-1),
    "perplexity a word": of_cell("protocol", perplexity="low"),
    "calibration a list": lambda data: data["cell"].update(calibration=[1]),
    "cell nested 50 deep": of_cell("protocol", extra=nested(50)),
    "cell nested 400 deep": of_cell("protocol", extra=nested(400)),
    "claimed nested 300 deep": part("claimed", extra=nested(300)),
}

RECORDS: Mapping[str, Callable[[Path, Data], None]] = {
    **{name: spoilt(change) for name, change in SPOILT.items()},
    "another key": text(lambda content: content.replace(b'"key": "', b'"key": "0', 1)),
    "torn": text(lambda content: content[:700]),
    "empty": text(lambda _: b""),
    "zeros": text(lambda content: bytes(len(content))),
    "a list": text(lambda _: b"[]"),
    "a number of 5000 digits": text(lambda _: b"1" * 5000),
    "brackets": text(lambda _: b"[" * 6000),
    "brackets that close": text(lambda _: b'{"schema":2,"cell":' + b"[" * 3000 + b"]" * 3000 + b"}"),
    "no UTF-8": text(lambda content: content.replace(b"smollm2", b"\xff\xfe")),
    "a raw escape": text(lambda content: content.replace(b"smollm2", b"\x1b[31m")),
    "two records": text(lambda content: content + content),
    "a record and 50 MB of space": text(lambda content: content + b" " * 50_000_000),
    "a FIFO": thing(os.mkfifo),
    "a folder": thing(Path.mkdir),
    "a socket": thing(listening),
    "a link to nothing": thing(lambda path: path.symlink_to("nothing")),
    "a link to itself": thing(lambda path: path.symlink_to(path.name)),
    "a link to a device without end": thing(lambda path: path.symlink_to("/dev/zero")),
    "a link to a terminal": thing(lambda path: path.symlink_to("/dev/tty")),
    "a link to what waits": thing(lambda path: path.symlink_to("/proc/kmsg")),
    "a link to a folder": thing(lambda path: path.symlink_to("/")),
    "a terabyte": thing(long_file(2**40)),
}


def packed(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def zipped(entries: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def header(shape: str, dtype: str = "'<f4'") -> bytes:
    """The beginning of an .npy file that says what it likes."""
    words = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(words)) + words


def with_array(name: str, content: bytes) -> Callable[[Arrays], bytes]:
    return lambda _: zipped({f"{name}.npy": content})


def replaced(**changes: Any) -> Callable[[Arrays], bytes]:
    return lambda arrays: packed({**arrays, **changes})


def directory_of_a_million(_: Arrays) -> bytes:
    """A zip file whose list of contents alone would take a gigabyte to read."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(entry) * 1_000_000, 0, 0)
    return entry * 1_000_000 + end


SAMPLES: Mapping[str, Callable[[Arrays], bytes]] = {
    "garbage": lambda _: b"no zip file at all" * 100,
    "nothing": lambda _: b"PK",
    "cut short": lambda arrays: packed(arrays)[:-100],
    "damaged in the middle": lambda arrays: (content := packed(arrays))[:9000] + bytes(4000) + content[13000:],
    "a pickle": lambda _: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
    "pickled objects": replaced(token_nll=np.array([{}, None], dtype=object)),
    "words": replaced(token_nll=np.array(["a", "b"])),
    "complex numbers": replaced(token_nll=np.ones(8184, complex)),
    "records of fields": replaced(token_nll=np.zeros(8, dtype=[("a", "f4")])),
    "an array of no dimension": replaced(token_nll=np.float32(1)),
    "an array of two dimensions": replaced(token_nll=np.ones((12, 682), np.float32)),
    "an empty array": replaced(token_nll=np.ones(0, np.float32)),
    "a short array": replaced(token_nll=np.ones(5, np.float32)),
    "a short baseline": replaced(baseline_token_nll=np.ones(5, np.float32)),
    "losses that are none": replaced(token_nll=np.full(8184, np.nan, np.float32)),
    "times that are none": replaced(token_s_b1=np.full((8, 64), np.nan)),
    "times below zero": replaced(token_s_b1=np.full((8, 64), -1.0)),
    "baseline times of zero": replaced(baseline_token_s_b1=np.zeros((8, 64))),
    "times of too few rounds": replaced(token_s_b1=np.ones((3, 64))),
    "times in one dimension": replaced(token_s_b1=np.ones(64), baseline_token_s_b1=np.ones(64)),
    "turns of two numbers": replaced(turns_token_s_b1=np.ones((8, 32, 2))),
    "generations of other lengths": replaced(generated=np.ones((3, 3), np.int32)),
    "an array of 8 TiB": with_array("token_nll", header("(2199023255552,)")),
    "an array of 8 TiB in bytes of zero": with_array("token_nll", header("(2199023255552, 0)")),
    "an array of a negative length": with_array("token_nll", header("(-1,)")),
    "a length of 400 digits": with_array("token_nll", header(f"({'9' * 400},)")),
    "a header of brackets": with_array("token_nll", header("(" * 900)),
    "a header of code": with_array("token_nll", header("__import__('os').system('touch canary')")),
    "a header of another type": with_array("token_nll", header("(2,)", "'|O'") + bytes(16)),
    "a header without end": with_array("token_nll", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 5000),
    "no header": with_array("token_nll", b""),
    "a bomb": with_array("token_nll", header("(20971520,)") + bytes(80 * 2**20)),
    "many arrays": lambda _: zipped({f"a{n}.npy": header("(2097152,)") + bytes(2**23) for n in range(10)}),
    "another compression": lambda _: zipped({"token_nll.npy": header("(2,)") + bytes(8)}, zipfile.ZIP_LZMA),
    "a directory of a million": directory_of_a_million,
    "an escape for a name": lambda _: zipped({f"{ESCAPE}.npy": header("(3,)")}),
}

PLACES: Mapping[str, Callable[[Path], Any]] = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a terabyte": long_file(2**40),
    "gone": lambda _: None,
}
