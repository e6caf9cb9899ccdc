"""Run a model in OpenVINO, on the CPU: its graph compiled once, keys and values kept in the engine.

What its CPU plugin does unasked is asked for here: keys and values in 8 bits, bfloat16 where a processor has it, inputs
of compressed weights rounded to int8 in groups. So a row says what it was measured with.
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
from squeeze.artifacts.exports.openvino import FILE
from squeeze.artifacts.exports.traced import WEIGHTS, check_installed
from squeeze.core.errors import Unsupported
from squeeze.runtimes.exported import Exported, Generation, Read, check_cpu, chosen, log_probabilities, logits

NAME = "openvino"
PRECISIONS = {"float32": ("f32", 4), "bfloat16": ("bf16", 2)}  # as OpenVINO names them, and bytes of a value
GROUPS = {"float": 0, "int8": 32}  # inputs of codes that share a scale as they are rounded; 32 is the plugin's own


@dataclass(frozen=True)
class OpenVINO:
    """Run in OpenVINO. device: "cpu". threads: those that it computes with.

    weights: "stored", as the artifact has them, codes as codes; or rounded by NNCF to "int8" or "int4". activations: of
    what is multiplied with codes, "float" or rounded to "int8". precision: of all else, keys and values among it,
    "float32" or "bfloat16".
    """

    device: str
    threads: int
    weights: Literal["stored", "int8", "int4"]
    activations: Literal["float", "int8"]
    precision: Literal["float32", "bfloat16"]

    environment: ClassVar[str] = "openvino"
    only_on: ClassVar[str] = "cpu"

    def load(self, folder: Path) -> OpenVINOEngine:
        """Load an artifact's export, which is made the first time.

        Raises IntegrityError for a damaged folder; Unsupported without openvino, for another device, for fields that
        are none, for bfloat16 on a processor without it, and as ``exports.openvino.to_openvino`` does.
        """
        check_cpu(NAME, self.device)
        chosen(NAME, "weights", self.weights, dict.fromkeys(WEIGHTS))
        group = chosen(NAME, "activations", self.activations, GROUPS)
        precision, itemsize = chosen(NAME, "precision", self.precision, PRECISIONS)
        check_installed(NAME, "openvino")
        import openvino

        export = exported(folder, "openvino", weights=self.weights)
        core = openvino.Core()
        model = core.read_model(str(export / FILE))
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
            "ENABLE_HYPER_THREADING": True,  # else it leaves the second thread of a core alone, whatever it was given
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
        }
        compiled = core.compile_model(model, "CPU", settings)
        _check_precision(compiled.get_property("INFERENCE_PRECISION_HINT"), getattr(openvino.Type, precision))
        exact = self.weights == "stored" and self.activations == "float"
        values = sum(map(_values_per_token, model.get_variables()))
        held = (export / FILE).with_suffix(".bin").stat().st_size
        return OpenVINOEngine(compiled, Exported.of(export), held, float(itemsize * values), exact)


@dataclass(frozen=True)
class OpenVINOEngine:
    """Run a compiled model, ``openvino.CompiledModel``.

    bytes_held: of the weights, as the IR stores them; the plugin may lay them out anew. bytes_per_token: of keys and
    values. exact: whether it computes with the artifact's own weights, in floating point.
    """

    compiled: Any
    exported: Exported
    bytes_held: int
    bytes_per_token: float
    exact: bool

    scored_as: ClassVar[str] = "itself"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the artifact's tokenizer."""
        return self.exported.tokenizer

    def begin(self, positions: int) -> Generation:
        """Begin a generation. Raises Unsupported when the model has fewer positions."""
        self.exported.check_length(positions)
        return Generation(self._reader(), self.bytes_per_token)

    def encode(self, token_ids: Tensor) -> Tensor:
        """Run an encoder, (rows, tokens) int64 -> (rows, tokens, hidden), or a classifier, -> (rows, classes).

        Raises Unsupported as ``begin`` does.
        """
        self.exported.check_length(token_ids.shape[1])
        names = {name for port in self.compiled.outputs for name in port.get_names()}
        port = self.compiled.output("logits" if "logits" in names else "last_hidden_state")
        found = self.compiled.create_infer_request().infer({"input_ids": token_ids.contiguous().numpy()})
        return torch.from_numpy(found[port])

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

    def _reader(self) -> Read:
        """Return what reads tokens, its keys and values none yet: each request of OpenVINO has its own."""
        request, port = self.compiled.create_infer_request(), self.compiled.output("logits")

        def read(token_ids: Tensor, places: Tensor) -> Tensor:
            given = {
                "input_ids": token_ids.contiguous().numpy(),
                "logits_to_keep": places.numpy(),
                "beam_idx": np.arange(len(token_ids), dtype=np.int32),
            }
            return torch.from_numpy(request.infer(given, share_inputs=True)[port])

        return read


def _values_per_token(variable: Any) -> int:
    """Count the values that a variable keeps of a token: its dimensions but those of rows and tokens."""
    return math.prod(int(size.get_length()) for size in variable.get_info().data_shape if size.is_static)


def _check_precision(found: Any, expected: Any) -> None:
    if found != expected:
        raise Unsupported(
            f"OpenVINO computes in {found} on this processor, asked for {expected}, for which it has no instructions;"
            " use precision=float32"
        )
