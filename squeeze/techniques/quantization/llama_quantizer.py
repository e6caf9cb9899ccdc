"""Let llama.cpp's own quantizer work on a GGUF, with an importance matrix or without."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from squeeze.core.errors import SqueezeError
from squeeze.models.llama_library import library

Importance = Mapping[str, npt.NDArray[np.float32]]  # name of a tensor -> how much each of its input channels matters


class _Entry(ctypes.Structure):
    """Hold one tensor's importance, as ``llama_model_imatrix_data`` of llama.h has it."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    )


def quantize(source: Path, target: Path, file_type: int, importance: Importance, threads: int) -> None:
    """Write ``source``, a GGUF of floats, to ``target`` as llama.cpp quantizes it.

    file_type: a number of ``llama_ftype``, which says what becomes of each tensor. importance: the mean square of each
    input channel; tensors that it leaves out are quantized without. threads: they change no bit of the result.
    Raises Unsupported where the library is missing, or of another version, whose importance may be of another type;
    SqueezeError, with its last words, where it fails.
    """
    found = library()
    parameters = found.api.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, threads
    entries = _entries(importance)
    if importance:
        kinds = dict(type(parameters)._fields_)  # the pointer's type, which the package may or may not name
        parameters.imatrix = ctypes.cast(entries, kinds["imatrix"])
    found.lines.clear()
    arguments = os.fsencode(source), os.fsencode(target), ctypes.byref(parameters)
    if failed := found.api.llama_model_quantize(*arguments):
        raise SqueezeError(f"llama.cpp's quantizer failed ({failed}): {found.complaint()}")


def _entries(importance: Importance) -> Any:
    """Return an array that ends with an entry without a name. It keeps what its pointers point to."""
    entries = (_Entry * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        data = (ctypes.c_float * len(values))(*np.asarray(values, dtype=np.float32).tolist())
        entry.name, entry.size = name.encode(), len(values)
        entry.data = ctypes.cast(data, ctypes.POINTER(ctypes.c_float))
    return entries
