"""Keep what one measuring process saw: scalars and lists in samples.json, arrays in samples.npz.

The two files are the only way out of a measuring process. The arrays are written first and samples.json names
their SHA-256, so whoever can read samples.json can trust both.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from squeeze.core.errors import IntegrityError
from squeeze.core.files import write_atomically
from squeeze.core.hashing import sha256

JSON_NAME = "samples.json"
ARRAYS_NAME = "samples.npz"

Array = np.ndarray[Any, Any]


@dataclass
class Samples:
    """Collect the values of one stage of one process in memory until `write`.

    clock: seconds of the process's own time, which need not pass while others have their turn.
    """

    folder: Path
    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    clock: Callable[[], float] = time.perf_counter

    def put(self, name: str, value: Any) -> None:
        """Keep a JSON value under a new name. Raises ValueError for a second value, TypeError when it is not JSON."""
        if name in self.values:
            raise ValueError(f"sample {name!r} was already put: {self.values[name]!r}, now {value!r}")
        self.values[name] = _jsonable(name, value)

    def put_all(self, values: Mapping[str, Any]) -> None:
        """Keep each of these values, by `put`."""
        for name, value in values.items():
            self.put(name, value)

    def put_entry(self, name: str, entry: str, value: Any) -> None:
        """Keep a JSON value as `values[name][entry]`, for figures that several benches fill (one batch size each)."""
        entries = self.values.setdefault(name, {})
        if entry in entries:
            raise ValueError(f"sample {name}[{entry!r}] was already put: {entries[entry]!r}, now {value!r}")
        entries[entry] = _jsonable(name, value)

    def flag(self, name: str, raised: bool) -> None:
        """Keep a boolean that is true once any bench raises it."""
        self.values[name] = self.values.get(name, False) or raised

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes to `values["stages"][name]`, also when it fails."""
        start = self.clock()
        try:
            yield
        finally:
            stages = self.values.setdefault("stages", {})
            stages[name] = stages.get(name, 0.0) + self.clock() - start

    def put_array(self, name: str, array: Array) -> None:
        """Keep an array under a new name. Raises ValueError for a second one, TypeError for an array of objects."""
        if name in self.arrays:
            raise ValueError(f"array {name!r} was already put")
        if array.dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects: expected numbers, booleans or fixed-length strings")
        self.arrays[name] = array

    def write(self) -> Path:
        """Write both files atomically and return the path of samples.json. Raises OSError (disk full, read-only)."""
        buffer = io.BytesIO()
        np.savez(buffer, **self.arrays)  # type: ignore[arg-type]
        content = buffer.getvalue()
        write_atomically(self.folder / ARRAYS_NAME, content)
        values = {**self.values, "arrays_sha256": hashlib.sha256(content).hexdigest()}
        path = self.folder / JSON_NAME
        write_atomically(path, json.dumps(values, indent=1).encode())
        return path


def read(folder: Path, *, arrays: bool = True) -> Samples:
    """Return the samples that `Samples.write` left in `folder`; `arrays=False` leaves samples.npz closed.

    Raises FileNotFoundError when the process wrote none, IntegrityError when a file is torn or was changed since.
    """
    path = folder / JSON_NAME
    try:
        values = json.loads(path.read_bytes())
        expected = values.pop("arrays_sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{JSON_NAME} in {folder.name} is not a samples file: {error!r}; measure again") from error
    if not arrays:
        return Samples(folder, values)
    found = sha256(folder / ARRAYS_NAME)
    if found != expected:
        raise IntegrityError(f"{ARRAYS_NAME} in {folder.name} has sha256 {found}, expected {expected}; measure again")
    with np.load(folder / ARRAYS_NAME, allow_pickle=False) as loaded:
        return Samples(folder, values, dict(loaded))


def _jsonable(name: str, value: Any) -> Any:
    """Return `value` after a trip through JSON, so that what is read back is what was put.

    NaN and infinity pass (Python's JSON writes and reads them): a diverged model's perplexity is a finding.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"sample {name!r} is not JSON: {error}") from error
