"""Run an artifact in vLLM, on a GPU: its export, loaded by that library, and its requests, taken step by step.

It lies in an environment of its own, beside the packages of this one, with a torch of its own; see ``environments``.
The engine works in this process, one step at a time: a step reads prompts, or decodes one token of each request, and
has ended when it returns. Nothing is kept of prompts that were read (no prefix cache), and the memory for keys and
values is fixed, not a share of the GPU's: else a row's memory would say how large the GPU is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.cached import exported
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import live_bytes
from squeeze.runtimes.vllm_exports import chosen
from squeeze.runtimes.vllm_requests import Requests
from squeeze.runtimes.vllm_scores import of_places, of_prompt

POSITIONS = 8192  # tokens of a text, at most, that the engine is laid out for; fewer where the model has fewer
ROOM = 16384  # tokens of all texts together whose keys and values fit, and that one step reads at most
ROWS = 64  # requests at a time
APART = "VLLM_ENABLE_V1_MULTIPROCESSING"  # the variable that puts the engine into a process of its own, unless it is 0


@dataclass(frozen=True)
class Vllm:
    """Run in vLLM. device: ``cuda``. threads: those of the processor, of which it asks for none."""

    device: str
    threads: int

    environment: ClassVar[str] = "vllm"
    only_on: ClassVar[str] = "cuda"
    compiles: ClassVar[bool] = True  # its own forward, by torch

    def load(self, folder: Path) -> VllmEngine:
        """Load an artifact; its export is made the first time, unless it is the artifact's own folder that is read.

        Raises Unsupported, before any work, as ``check_machine`` does and for what ``chosen`` refuses; for what vLLM
        has no kernel for; IntegrityError for a damaged folder.
        """
        check_machine(self.device)
        description = artifact.describe(folder)
        form = chosen(description)
        source = folder if form is None else exported(folder, form)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        library = started(arguments(source, config, description))
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        kept = bytes_of_a_token(config, getattr(torch, description["dtype"]))
        requests = Requests(library.llm_engine)
        return VllmEngine(library, tokenizer, positions_of(config), int(config.vocab_size), kept, requests)


def check_machine(device: str) -> None:
    """Raise Unsupported unless vLLM can run here: on the first CUDA device, and installed."""
    if not device.startswith("cuda"):
        raise Unsupported(f"vllm runs on a GPU, found device={device}; use device=cuda where there is one")
    if not torch.cuda.is_available():
        raise Unsupported(f"vllm runs on a GPU, and no CUDA device is here for device={device}; use runtime=eager")
    if device not in ("cuda", "cuda:0"):
        raise Unsupported(
            f"vllm takes the first device that it sees, not {device}; set CUDA_VISIBLE_DEVICES={device[5:]} and use"
            " device=cuda"
        )
    if find_spec("vllm") is None:
        raise Unsupported("vllm is not installed in this environment; run `nox -s runtimes -- vllm`")


def arguments(source: Path, config: Any, description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the engine is made with.

    source: the folder that is read. config: the model's. description: what ``artifact.json`` says.
    """
    dtype = description["dtype"]
    return {
        "model": str(source),
        "dtype": dtype,
        "hf_overrides": {"architectures": [description["architecture"]]},  # which a configuration need not say
        "load_format": "safetensors",
        "trust_remote_code": False,
        "skip_tokenizer_init": True,  # texts are token ids, of our tokenizer
        "max_model_len": positions_of(config),
        "max_num_seqs": ROWS,
        "max_num_batched_tokens": ROOM,
        "kv_cache_memory_bytes": ROOM * bytes_of_a_token(config, getattr(torch, dtype)),
        "enable_prefix_caching": False,
        "max_logprobs": -1,  # those of all tokens may be asked for
        "async_scheduling": False,  # a step would return before its token is there
        "seed": 0,
    }


def greedy(tokens: int) -> dict[str, Any]:
    """Return the settings of a request for so many tokens, the likeliest each, whatever they are."""
    return {"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True, "detokenize": False}


def positions_of(config: Any) -> int:
    """Return how many tokens of a text the engine is laid out for."""
    most = getattr(config, "max_position_embeddings", None)
    return min(most, POSITIONS) if isinstance(most, int) else POSITIONS


def bytes_of_a_token(config: Any, dtype: torch.dtype) -> int:
    """Return the bytes of a token's keys and values in all blocks, in the model's dtype."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * channels * dtype.itemsize)


def started(options: Mapping[str, Any]) -> Any:
    """Return vLLM's ``LLM``, made in this process. Raises Unsupported for what it has no kernel or no model for."""
    from vllm import LLM

    with _in_this_process():
        try:
            return LLM(**options)
        except (ValueError, NotImplementedError) as error:
            said = " ".join(str(error).split())[:200]
            raise Unsupported(
                f"vllm does not run this artifact on this GPU ({said}); what it has kernels for is in docs/vllm.md"
            ) from error


@dataclass(frozen=True)
class VllmEngine:
    """Run an export.

    library: vLLM's ``LLM``. positions: of a text, at most. vocabulary: tokens that are predicted. kept: bytes of a
    token in the cache.
    """

    library: Any
    tokenizer: PreTrainedTokenizerBase
    positions: int
    vocabulary: int
    kept: int
    requests: Requests

    scored_as: ClassVar[str] = "itself"
    exact: ClassVar[bool] = True  # codes are widened as they are multiplied, and nothing else is rounded to fewer bits

    @property
    def bytes_held(self) -> int:
        """Count the bytes of the weights on the GPU, as vLLM has laid them out for its kernels."""
        return int(sum(self.library.apply_model(live_bytes)))

    @property
    def page(self) -> int:
        """Return how many tokens of a text the cache makes room for at a time."""
        return int(self.library.llm_engine.vllm_config.cache_config.block_size)

    def begin(self, positions: int) -> VllmGeneration:
        """Begin a generation, which ends the one before it. Raises Unsupported where there are fewer positions."""
        self._check_length(positions + 1)  # vLLM counts the last token, too
        return VllmGeneration(self, positions)

    def encode(self, token_ids: Tensor) -> Tensor:
        """Raise Unsupported: this runtime is for models that predict tokens."""
        raise Unsupported(f"vllm runs no encoder here ({len(token_ids)} texts given); use runtime=eager")

    def logits(self, token_ids: Tensor) -> Tensor:
        """Return the logits after each given token, (rows, tokens) int64 -> (rows, tokens, vocabulary) float32.

        They are normalised: vLLM gives log-probabilities of a prompt's places, of all tokens where that is asked for,
        as lists of numbers, 120 bytes each. One text after the other. Raises Unsupported as ``begin`` does.
        """
        from vllm import SamplingParams

        settings = SamplingParams(**greedy(1), prompt_logprobs=-1, logprobs=-1, flat_logprobs=True)
        found = []
        for row in torch.split(token_ids, 1):
            [output] = self._scored(row, settings)
            places = of_places(output.prompt_logprobs, self.vocabulary)[1:]  # nothing predicts the first token
            found.append(torch.cat([places, of_places(output.outputs[0].logprobs, self.vocabulary)]))
        return torch.stack(found)

    def log_probabilities(self, token_ids: Tensor) -> Tensor:
        """Return the log-probability of each given token after the first, (rows, tokens - 1) float32, in nats.

        As vLLM scores prompts: in one step, by the kernels that read them. Raises Unsupported as ``begin`` does.
        """
        from vllm import SamplingParams

        outputs = self._scored(token_ids, SamplingParams(**greedy(1), prompt_logprobs=1))
        pairs = zip(outputs, token_ids.tolist(), strict=True)
        return torch.tensor([of_prompt(each.prompt_logprobs, row) for each, row in pairs])

    def _scored(self, token_ids: Tensor, settings: Any) -> Any:
        """Return what vLLM says of these prompts; what was decoded is let go: it would go on meanwhile."""
        self._check_length(token_ids.shape[1] + 1)  # it goes on by one token, which nobody asked for
        self.requests.stop()
        prompts = [{"prompt_token_ids": row} for row in token_ids.tolist()]
        return self.library.generate(prompts, settings, use_tqdm=False)

    def _check_length(self, positions: int) -> None:
        if positions > self.positions:
            raise Unsupported(
                f"this runtime has {self.positions} positions of the model, the prompt and what follows it need"
                f" {positions}; lower protocol.latency.prompt_tokens or decode_tokens"
            )


@dataclass
class VllmGeneration:
    """Run one greedy generation, of every row of a batch at once.

    positions: tokens of a row at most. tokens: those that vLLM has chosen so far, by request; count: how many of each
    were returned. prompt: (rows, tokens) int64.
    """

    engine: VllmEngine
    positions: int
    tokens: dict[str, list[int]] = field(default_factory=dict)
    count: int = 0
    prompt: Tensor | None = None

    def prefill(self, prompt: Tensor) -> Tensor:
        """Read the prompt, (rows, tokens) int64, and return the first token of each row, (rows, 1) int64."""
        from vllm import SamplingParams

        settings = SamplingParams(**greedy(self.positions - prompt.shape[1] + 1))  # the last one is never read
        self.prompt = prompt
        self.tokens = {name: [] for name in self.engine.requests.begin(prompt.tolist(), settings)}
        return self.decode()

    def decode(self) -> Tensor:
        """Return the next token of each row, (rows, 1) int64. Raises IndexError before any prefill.

        Raises SqueezeError where another generation has begun since, or no token was left to ask for.
        """
        if self.prompt is None:
            raise IndexError("no prompt was read; call prefill first")
        if self.engine.requests.names != tuple(self.tokens):
            raise SqueezeError("another generation has begun, which ended this one; expected one at a time")
        while min(map(len, self.tokens.values())) <= self.count:  # of a long batch, a step reads a part
            self.tokens |= self.engine.requests.step()
        self.count += 1
        chosen_now = [[tokens[self.count - 1]] for tokens in self.tokens.values()]
        return torch.tensor(chosen_now, device=self.prompt.device)

    def token_ids(self) -> list[list[int]]:
        """Return the tokens chosen so far, a list for each row."""
        return [tokens[: self.count] for tokens in self.tokens.values()]

    @property
    def bytes_per_token(self) -> float:
        """Return the bytes kept of one token of one row: of whole pages, over the tokens that were read."""
        if self.prompt is None:
            raise IndexError("no prompt was read; call prefill first")
        read, page = self.prompt.shape[1] + self.count - 1, self.engine.page
        return -(-read // page) * page * self.engine.kept / read


@contextmanager
def _in_this_process() -> Iterator[None]:
    """Let an engine that is made within the body work in this process, and leave the environment as it was."""
    before = os.environ.get(APART)
    os.environ[APART] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[APART]
        else:
            os.environ[APART] = before
