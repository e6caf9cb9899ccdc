"""Read the raw samples of a record, an .npz file from anywhere: checked before it is unpacked.

A few kilobytes of zip can claim terabytes, a header of an array too, and an array of objects is a pickle. So the sizes
that the directory and the headers state are held against each other and against a limit first; of the arrays that are
known by name, the shapes and types, too.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from squeeze.core.errors import IntegrityError
from squeeze.records.record import Record
from squeeze.records.sanitize import line
from squeeze.records.store import LARGEST_SAMPLES, RecordStore
from squeeze.records.turns import BEFORE_POINT, CALLS, TIMINGS

LARGEST_DIRECTORY = 2**20  # bytes of a zip's list of contents
END = struct.Struct("<4s4H2LH")  # the end of a zip file: signature, ..., bytes of the directory, its place, ...
ZIP64 = b"PK\x06\x07"
NUMBERS, WHOLE, TRUTHS = "bfiu", "iu", "b"  # kinds of dtypes

# The first pattern that an array's name matches wholly, "baseline_" left out, gives its dimensions and kinds of dtypes.
KNOWN = tuple(
    (re.compile(pattern), dimensions, kinds)
    for pattern, dimensions, kinds in (
        (rf"({BEFORE_POINT})[1-9]\d*", 2, "f"),
        (rf"turns_({BEFORE_POINT})[1-9]\d*", 3, "f"),
        (r"interleaved", 1, TRUTHS),
        (CALLS.pattern, 2, TRUTHS),
        (r"drafting_[a-z]+", 2, "f"),
        (r"(token_nll|kl)(_ood)?|confidence|floor_kl|item_kl", 1, "f"),
        (r"top1|floor_top1|item_top1|.+_correct", 1, "b"),
        (r"window", 1, WHOLE),
        (r"generated(_alone)?", 2, WHOLE),
    )
)
PAIRED = re.compile(r"token_nll(_ood)?|generated(_alone)?|.+_correct")  # with the baseline's of the same name
ALIKE = (("kl", "top1"), ("kl", "confidence"), ("item_kl", "item_top1"), ("baseline_floor_kl", "baseline_floor_top1"))

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


def load(store: RecordStore, record: Record) -> dict[str, Array]:
    """Return the arrays of a record's samples by name; none of a record without samples.

    Raises IntegrityError where the file is missing, not the one that was recorded, or holds what no record keeps.
    """
    if not record.samples:
        return {}
    content = store.sample_bytes(record)
    try:
        arrays = dict(_unpacked(content))
        for name, array in arrays.items():
            _check_known(name, array)
        _check_together(arrays)
    except IntegrityError as error:
        raise IntegrityError(f"{record.samples['file']} holds no samples: {error}") from error
    return arrays


def _unpacked(content: bytes) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of an .npz file; their bytes together are at most as many as a samples file may have."""
    _check_directory(content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
            if total > LARGEST_SAMPLES:
                raise IntegrityError(f"{total:,} bytes when unpacked, expected at most {LARGEST_SAMPLES:,}")
            for entry in archive.infolist():
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise IntegrityError(f"{line(entry.filename)} is compressed by method {entry.compress_type}")
                name = entry.filename.removesuffix(".npy")
                yield name, _array(line(name), archive.read(entry))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, struct.error) as error:
        raise IntegrityError(f"no readable zip file ({line(str(error))})") from error


def _check_directory(content: bytes) -> None:
    """Refuse a file that does not end as numpy ends it, in a directory that is small: zipfile reads all of it."""
    if len(content) < END.size or not content[-END.size :].startswith(b"PK\x05\x06"):
        raise IntegrityError("no zip file, or one that was cut short")
    size = END.unpack(content[-END.size :])[5]
    if size > LARGEST_DIRECTORY or content[-END.size - 20 :].startswith(ZIP64):
        raise IntegrityError(f"a directory of {size:,} bytes, expected at most {LARGEST_DIRECTORY:,}")


def _array(name: str, content: bytes) -> Array:
    """Return the array that an .npy file holds, once its header fits its length."""
    file = io.BytesIO(content)
    try:
        version = npy.read_magic(file)  # type: ignore[no-untyped-call]
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_column, dtype = read(file)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever a parser of Python literals may raise
        raise IntegrityError(f"{name} is no array ({line(str(error))[:100]})") from error
    if dtype.kind not in NUMBERS:
        raise IntegrityError(f"{name} is of type {dtype}, expected numbers")
    claimed, there = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
    if min(shape, default=0) < 0 or claimed != there:
        raise IntegrityError(f"{name} claims the shape {shape}, {claimed:,} bytes, but has {there:,}")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if by_column else "C")


def _check_known(name: str, array: Array) -> None:
    own = name.removeprefix("baseline_")
    _, dimensions, kinds = next((known for known in KNOWN if known[0].fullmatch(own)), (None, array.ndim, NUMBERS))
    if array.ndim != dimensions or array.dtype.kind not in kinds or 0 in array.shape:
        raise IntegrityError(
            f"{line(name)} is of {array.dtype} and shape {array.shape}, expected {dimensions} dimensions, none of them "
            f"0, of type {' or '.join(kinds)}"
        )
    if own.startswith(TIMINGS) and not (np.isfinite(array) & (array > 0)).all():
        raise IntegrityError(f"{name} holds times that are not positive and finite")
    if own.startswith("turns_") and array.shape[2] != 3:
        raise IntegrityError(f"{name} is of shape {array.shape}, expected (rounds, turns, 3)")


def _check_together(arrays: Arrays) -> None:
    """Check that arrays which are read side by side have the same length."""
    timed = (*TIMINGS, "turns_", "interleaved", "calls_", "drafting_")
    of_rounds = {name: len(each) for name, each in arrays.items() if name.removeprefix("baseline_").startswith(timed)}
    if len(set(of_rounds.values())) > 1:
        raise IntegrityError(
            f"unlike numbers of rounds ({', '.join(f'{n} {of_rounds[n]}' for n in sorted(of_rounds))})"
        )
    pairs = [(name, f"baseline_{name}") for name in arrays if PAIRED.fullmatch(name) and name[:9] != "baseline_"]
    for one, other in (*pairs, *ALIKE):
        if one in arrays and other in arrays and arrays[one].shape != arrays[other].shape:
            shapes = f"{arrays[one].shape} and {arrays[other].shape}"
            raise IntegrityError(f"{line(one)} and {line(other)} are of unlike shapes ({shapes})")
