"""Hold a GGUF's weights in llama.cpp's memory, and decode batches of tokens with them, through its C interface."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from squeeze.core.errors import IntegrityError, SqueezeError, Unsupported
from squeeze.models.llama_library import Library, library

CELLS = 256  # of a text's cache: llama.cpp has them in whole multiples
BUFFER = re.compile(r"model buffer size = +([\d.]+) MiB")
MEBIBYTE = 2**20

Logits = npt.NDArray[np.float32]


@dataclass(eq=False)
class Weights:
    """Hold the weights of a model, which are freed with this object.

    bytes_held: of llama.cpp's buffers, those that it has laid out anew for its kernels among them. positions: the most
    that the model takes. vocabulary: the tokens that it gives logits for.
    """

    library: Library
    pointer: Any
    bytes_held: int
    positions: int
    vocabulary: int


def read(file: Path) -> Weights:
    """Read a GGUF into memory of the process's own, as the weights of all other runtimes are, not mapped.

    Raises Unsupported as ``library`` does, IntegrityError for a file that llama.cpp cannot read.
    """
    found = library()
    api = found.api
    parameters = api.llama_model_default_params()
    parameters.n_gpu_layers = 0
    _copied(parameters)
    found.lines.clear()
    pointer = api.llama_model_load_from_file(os.fsencode(file), parameters)
    if not pointer:
        raise IntegrityError(f"{file.name}: llama.cpp cannot read it ({found.complaint()}); export it again")
    buffers = sum(float(size) for size in BUFFER.findall("".join(found.lines)))
    held = max(round(buffers * MEBIBYTE), int(api.llama_model_size(pointer)))
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(pointer))
    weights = Weights(found, pointer, held, int(api.llama_model_n_ctx_train(pointer)), int(vocabulary))
    weakref.finalize(weights, api.llama_model_free, pointer)
    return weights


def _copied(parameters: Any) -> None:
    """Ask for weights that are copied out of their file, in the words of this version of llama.cpp."""
    known = {name for name, *_ in type(parameters)._fields_}
    if "load_mode" in known:
        parameters.load_mode = 0  # LLAMA_LOAD_MODE_NONE
    if "use_mmap" in known:
        parameters.use_mmap = False


@dataclass(eq=False)
class Context:
    """Hold the cache of some texts that are read side by side, in float16, and what decodes their tokens.

    at_once: tokens that go through the model in one call. batch: llama.cpp's list of them.
    """

    weights: Weights
    pointer: Any
    rows: int
    at_once: int
    batch: Any

    @classmethod
    def of(cls, weights: Weights, rows: int, positions: int, threads: int, at_once: int | None = None) -> Context:
        """Make a context of so many texts of so many tokens at most each.

        at_once: where not llama.cpp's own 2,048. Raises Unsupported where llama.cpp makes none.
        """
        api = weights.library.api
        parameters = api.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = rows * -(-positions // CELLS) * CELLS, rows
        parameters.n_threads = parameters.n_threads_batch = threads
        if at_once is not None:
            parameters.n_batch = at_once
        weights.library.lines.clear()
        pointer = api.llama_init_from_model(weights.pointer, parameters)
        if not pointer:
            said = weights.library.complaint()
            raise Unsupported(f"llama.cpp has no room for {rows} texts of {positions} tokens ({said}); use fewer")
        most = int(api.llama_n_batch(pointer))
        batch = api.llama_batch_init(most, 0, 1)
        context = cls(weights, pointer, rows, most, batch)
        weakref.finalize(context, _free, api, pointer, batch)
        return context

    def decode(self, token_ids: npt.NDArray[np.int64], first: int, *, every: bool) -> Logits:
        """Read the next tokens of each text, (rows, tokens), the first of them at position ``first``.

        Return the logits after each, (rows, tokens, vocabulary), or with ``every=False`` after the last of each row,
        (rows, 1, vocabulary). Raises SqueezeError where llama.cpp fails.
        """
        rows, tokens = token_ids.shape
        flat, row = token_ids.reshape(-1), np.repeat(np.arange(rows), tokens)
        position = np.tile(np.arange(first, first + tokens), rows)
        wanted = np.ones(len(flat), bool) if every else position == first + tokens - 1
        found, count = np.empty((int(wanted.sum()), self.weights.vocabulary), np.float32), 0
        for start in range(0, len(flat), self.at_once):
            part = slice(start, start + self.at_once)
            for logits in self._call(flat[part], position[part], row[part], wanted[part]):
                found[count] = logits
                count += 1
        return found.reshape(rows, -1, self.weights.vocabulary)

    def bytes_per_token(self, tokens: int) -> float:
        """Return the bytes that llama.cpp would save of the first text, of which so many tokens were read, for each."""
        return float(self.weights.library.api.llama_state_seq_get_size(self.pointer, 0)) / tokens

    def _call(
        self,
        token_ids: npt.NDArray[np.int64],
        position: npt.NDArray[np.int64],
        row: npt.NDArray[np.int64],
        wanted: npt.NDArray[np.bool_],
    ) -> Iterator[Logits]:
        """Decode one batch, and yield the logits of the tokens that are wanted, in their order.

        They lie in llama.cpp's memory, and are overwritten by the next batch.
        """
        api, batch, count = self.weights.library.api, self.batch, len(token_ids)
        batch.n_tokens = count
        for field, values in ((batch.token, token_ids), (batch.pos, position), (batch.logits, wanted)):
            np.ctypeslib.as_array(field, shape=(count,))[:] = values
        np.ctypeslib.as_array(batch.n_seq_id, shape=(count,))[:] = 1
        for place, text in enumerate(row.tolist()):
            batch.seq_id[place][0] = text
        if failed := api.llama_decode(self.pointer, batch):
            said = self.weights.library.complaint()
            raise SqueezeError(f"llama.cpp failed ({failed}) at {count} tokens of {self.rows} texts: {said}")
        shape = (self.weights.vocabulary,)
        for place in np.flatnonzero(wanted).tolist():
            yield np.ctypeslib.as_array(api.llama_get_logits_ith(self.pointer, place), shape=shape)


def _free(api: Any, pointer: Any, batch: Any) -> None:
    api.llama_batch_free(batch)
    api.llama_free(pointer)
