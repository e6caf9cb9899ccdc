"""Run a model in ONNX Runtime, on the CPU. Keys and values that a step hands back are bound as the next one's inputs.

So they are copied by the graph alone, which appends to them, and never on the way through Python.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from squeeze.artifacts.exports.cached import exported
from squeeze.artifacts.exports.onnx import FILE, INT8_INPUTS_FILE
from squeeze.artifacts.exports.traced import WEIGHTS, check_installed
from squeeze.core.errors import Unsupported
from squeeze.runtimes.exported import Exported, Generation, Read, check_cpu, chosen, log_probabilities, logits

NAME = "onnx"
READS, GIVES = "input.", "output."  # what the names of keys and values begin with
ITEMSIZE = 4  # bytes of a key's value: the graph is in float32


@dataclass(frozen=True)
class ONNXRuntime:
    """Run in ONNX Runtime. device: "cpu". threads: those that it computes with.

    weights: "stored", as the artifact has them, codes as codes; or rounded by ONNX Runtime's tools to "int8" or "int4".
    activations: of what is multiplied with codes, "float" or rounded to "int8" block by block; "int8" of weights in
    int8, which ONNX Runtime has with no others.
    """

    device: str
    threads: int
    weights: Literal["stored", "int8", "int4"]
    activations: Literal["float", "int8"]

    environment: ClassVar[str] = "onnx"
    only_on: ClassVar[str] = "cpu"

    def load(self, folder: Path) -> ONNXEngine:
        """Load an artifact's export, which is made the first time.

        Raises IntegrityError for a damaged folder; Unsupported without onnxruntime, for another device, for fields that
        are none or do not go together, and as ``exports.onnx.to_onnx`` does.
        """
        check_cpu(NAME, self.device)
        chosen(NAME, "weights", self.weights, dict.fromkeys(WEIGHTS))
        file = chosen(NAME, "activations", self.activations, {"float": FILE, "int8": INT8_INPUTS_FILE})
        if self.weights == "int8":
            if self.activations != "int8":
                raise Unsupported("ONNX Runtime rounds the inputs of int8 weights, too; use activations=int8")
            file = FILE  # its only one
        check_installed(NAME, "onnxruntime")
        import onnxruntime

        export = exported(folder, "onnx", weights=self.weights)
        if not (export / file).is_file():
            raise Unsupported("no weight is a code, so that no input is rounded to int8; use activations=float")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        session = onnxruntime.InferenceSession(str(export / file), options, providers=["CPUExecutionProvider"])
        exact = self.weights == "stored" and self.activations == "float"
        held = (export / f"{FILE}.data").stat().st_size
        return ONNXEngine(session, Exported.of(export), held, exact)


@dataclass(frozen=True)
class ONNXEngine:
    """Run a session, ``onnxruntime.InferenceSession``.

    bytes_held: of the weights, as the file stores them; ONNX Runtime may keep some in another layout beside. exact:
    whether it computes with the artifact's own weights, in floating point.
    """

    session: Any
    exported: Exported
    bytes_held: int
    exact: bool

    scored_as: ClassVar[str] = "itself"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the artifact's tokenizer."""
        return self.exported.tokenizer

    @property
    def bytes_per_token(self) -> float:
        """Return the bytes that the cache keeps for each token of one row."""
        return float(sum(ITEMSIZE * math.prod(_fixed(spec)) for spec in self._kept()))

    def begin(self, positions: int) -> Generation:
        """Begin a generation. Raises Unsupported when the model has fewer positions."""
        self.exported.check_length(positions)
        return Generation(self._reader(), self.bytes_per_token)

    def encode(self, token_ids: Tensor) -> Tensor:
        """Run an encoder, (rows, tokens) int64 -> (rows, tokens, hidden), or a classifier, -> (rows, classes).

        Raises Unsupported as ``begin`` does.
        """
        self.exported.check_length(token_ids.shape[1])
        names = {spec.name for spec in self.session.get_outputs()}
        wanted = "logits" if "logits" in names else "last_hidden_state"
        (found,) = self.session.run([wanted], {"input_ids": token_ids.contiguous().numpy()})
        return torch.from_numpy(found)

    def logits(self, token_ids: Tensor) -> Tensor:
        """Return the logits after each given token, (rows, tokens) int64 -> (rows, tokens, vocabulary) float32.

        Raises Unsupported as ``begin`` does.
        """
        self.exported.check_length(token_ids.shape[1])
        return logits(self._reader(), token_ids)

    def log_probabilities(self, token_ids: Tensor) -> Tensor:
        """Return the log-probability of each given token after the first, (rows, tokens - 1) float32, in nats.

        Raises Unsupported as ``begin`` does.
        """
        self.exported.check_length(token_ids.shape[1] - 1)  # the last one is not read
        return log_probabilities(self._reader(), token_ids)

    def _kept(self) -> list[Any]:
        """Return the inputs that are keys and values."""
        return [spec for spec in self.session.get_inputs() if spec.name.startswith(READS)]

    def _reader(self) -> Read:
        """Return what reads tokens, its keys and values none yet."""
        session, kept = self.session, self._kept()
        outputs = [spec.name for spec in session.get_outputs()]
        nowhere = np.zeros(1, dtype=np.float32)  # an array without elements has no address, which ONNX Runtime wants
        values: dict[str, Any] = {}

        def read(token_ids: Tensor, places: Tensor) -> Tensor:
            binding, given = session.io_binding(), (token_ids.contiguous().numpy(), places.numpy())
            for name, array in zip(("input_ids", "logits_to_keep"), given, strict=True):
                binding.bind_cpu_input(name, array)
            for spec in kept:
                if values:
                    binding.bind_ortvalue_input(spec.name, values[GIVES + spec.name.removeprefix(READS)])
                else:
                    heads, size = _fixed(spec)
                    shape = [len(token_ids), heads, 0, size]
                    binding.bind_input(spec.name, "cpu", 0, np.float32, shape, nowhere.ctypes.data)
            for name in outputs:
                binding.bind_output(name, "cpu")
            session.run_with_iobinding(binding)
            values.update(zip(outputs, binding.get_outputs(), strict=True))
            return torch.from_numpy(values["logits"].numpy())

        return read


def _fixed(spec: Any) -> list[int]:
    """Return the fixed dimensions of keys or values, (rows, heads, tokens, size): heads and size."""
    return [size for size in spec.shape if isinstance(size, int)]
