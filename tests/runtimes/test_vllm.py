"""vLLM, as far as it goes without a GPU: refused before any work; how it is asked; how its steps become tokens."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.request.expand import cells
from squeeze.runtimes import contract, vllm
from squeeze.runtimes.vllm import Vllm, VllmEngine, arguments, check_machine, greedy, started
from squeeze.runtimes.vllm_requests import Requests
from tests.tiny import tiny_model, tiny_subject

PROMPT = torch.tensor([[1, 2, 3], [4, 5, 6]])
DESCRIPTION = {"architecture": "LlamaForCausalLM", "dtype": "bfloat16"}


class Stepping:
    """Stands for vLLM's LLMEngine, whose every step says which requests got a token. Tokens count up from 100 x row."""

    def __init__(self, *steps: tuple[int, ...]) -> None:
        self.steps, self.asked, self.aborted = list(steps), {}, []
        self.vllm_config = SimpleNamespace(cache_config=SimpleNamespace(block_size=16))

    def add_request(self, name: str, prompt: dict[str, list[int]], settings: Any) -> None:
        self.asked[name] = (prompt["prompt_token_ids"], settings.tokens, [])

    def has_unfinished_requests(self) -> bool:
        return any(len(made) < tokens for _, tokens, made in self.asked.values())

    def step(self) -> list[Any]:
        found = []
        for row in self.steps.pop(0) if self.steps else range(len(self.asked)):
            name, (_, _, made) = list(self.asked.items())[row]
            made.append(100 * row + len(made))
            found.append(SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=tuple(made))]))
        return found

    def abort_request(self, names: list[str]) -> None:
        self.aborted += names
        self.asked = {name: each for name, each in self.asked.items() if name not in names}


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module in vLLM's place: what is tested here is what is asked of it, and what becomes of its answers."""
    found = ModuleType("vllm")
    found.SamplingParams = lambda **settings: SimpleNamespace(tokens=settings["max_tokens"], **settings)
    monkeypatch.setitem(sys.modules, "vllm", found)
    return found


def engine(*steps: tuple[int, ...], **library: Any) -> VllmEngine:
    inner = Stepping(*steps)
    return VllmEngine(
        SimpleNamespace(llm_engine=inner, **library), tiny_subject("llama").tokenizer, 64, 5, 24, Requests(inner)
    )


def test_a_machine_without_a_gpu_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder is not there, and nobody looks."""
    (cell,) = cells(["model=tiny_llama", "technique=none", "runtime=vllm", "device=cpu", "threads=1"])
    runtime = contract.of(cell.runtime)
    assert runtime == Vllm("cpu", 1)
    assert (Vllm.environment, Vllm.only_on) == ("vllm", "cuda")
    with pytest.raises(Unsupported, match="runs on a GPU, found device=cpu; use device=cuda"):
        runtime.load(tmp_path / "nowhere")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unsupported, match="no CUDA device is here for device=cuda; use runtime=eager"):
        Vllm("cuda", 1).load(tmp_path / "nowhere")


def test_so_are_a_second_gpu_and_an_environment_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(Unsupported, match="not cuda:1; set CUDA_VISIBLE_DEVICES=1 and use device=cuda"):
        check_machine("cuda:1")
    monkeypatch.setattr(vllm, "find_spec", lambda _: None)
    with pytest.raises(Unsupported, match="run `nox -s runtimes -- vllm`"):
        check_machine("cuda")


def test_its_memory_is_that_of_a_fixed_number_of_tokens(tmp_path: Path) -> None:
    """Two blocks, two heads of keys and values of 16 channels, in 16 bits: 256 bytes a token."""
    found = arguments(tmp_path, tiny_model("llama").config, DESCRIPTION)
    assert found["kv_cache_memory_bytes"] == vllm.ROOM * 256
    assert (found["model"], found["dtype"], found["max_model_len"]) == (str(tmp_path), "bfloat16", 2048)
    assert found["hf_overrides"] == {"architectures": ["LlamaForCausalLM"]}
    assert {found[name] for name in ("enable_prefix_caching", "async_scheduling", "trust_remote_code")} == {False}
    whole = arguments(tmp_path, tiny_model("gpt2").config, {**DESCRIPTION, "dtype": "float32"})
    assert whole["kv_cache_memory_bytes"] == vllm.ROOM * 2 * 2 * 64 * 4


def test_it_has_no_more_positions_than_are_laid_out(tmp_path: Path) -> None:
    config = tiny_model("llama").config
    config.max_position_embeddings = 131_072
    assert arguments(tmp_path, config, DESCRIPTION)["max_model_len"] == vllm.POSITIONS
    engine().begin(63)
    with pytest.raises(Unsupported, match=r"has 64 positions of the model, .* need 65"):
        engine().begin(64)


def test_a_request_is_greedy_and_goes_on_behind_the_end_of_a_text() -> None:
    assert greedy(7) == {"temperature": 0.0, "max_tokens": 7, "ignore_eos": True, "detokenize": False}


@pytest.mark.parametrize("steps", [(), ((0,), (0, 1)), ((1,), (1,), (0, 1))])
def test_steps_become_one_token_of_each_row_at_a_time(steps: tuple[tuple[int, ...], ...]) -> None:
    """Also where a step reads one prompt alone, and the other row is a token ahead by then."""
    generation = engine(*steps).begin(20)
    first = generation.prefill(PROMPT)
    later = [generation.decode() for _ in range(3)]
    assert first.tolist() == [[0], [100]]
    assert [token.tolist() for token in later] == [[[number], [100 + number]] for number in (1, 2, 3)]
    assert generation.token_ids() == [[0, 1, 2, 3], [100, 101, 102, 103]]
    inner = generation.engine.requests.engine
    assert [prompt for prompt, _, _ in inner.asked.values()] == PROMPT.tolist()
    assert {tokens for _, tokens, _ in inner.asked.values()} == {18}, "as many as there are positions, and the last"


def test_a_generation_ends_the_one_before_it() -> None:
    whole = engine()
    first, second = whole.begin(20), whole.begin(20)
    with pytest.raises(IndexError, match="no prompt was read"):
        first.decode()
    first.prefill(PROMPT)
    second.prefill(PROMPT[:1])
    assert whole.requests.engine.aborted == ["1/0", "1/1"]
    assert first.token_ids() == [[0], [100]]
    with pytest.raises(SqueezeError, match="another generation has begun"):
        first.decode()
    assert second.decode().tolist() == [[1]]


def test_more_tokens_than_were_asked_for_are_none() -> None:
    generation = engine().begin(4)
    generation.prefill(PROMPT)
    generation.decode()
    with pytest.raises(SqueezeError, match="no request left"):
        generation.decode()


def test_bytes_of_a_token_are_those_of_whole_pages() -> None:
    """A prompt of 3 and two decoded tokens that were read: one page of 16 tokens of 24 bytes, for 5."""
    generation = engine().begin(40)
    generation.prefill(PROMPT)
    for _ in range(2):
        generation.decode()
    assert generation.bytes_per_token == 16 * 24 / 5
    for _ in range(12):
        generation.decode()
    assert generation.bytes_per_token == 32 * 24 / 17


def test_log_probabilities_are_those_of_the_prompts_own_tokens(library: ModuleType) -> None:
    def likely(**of: float) -> dict[int, Any]:
        return {int(token[1:]): SimpleNamespace(logprob=value) for token, value in of.items()}

    answers = [
        SimpleNamespace(prompt_logprobs=[None, likely(t2=-0.5), likely(t9=-0.1, t3=-2.0)]),
        SimpleNamespace(prompt_logprobs=[None, likely(t5=-1.0, t8=-0.2), likely(t6=-3.0)]),
    ]
    asked: list[Any] = []
    whole = engine(generate=lambda prompts, settings, **_: asked.append((prompts, settings)) or answers)
    whole.begin(20).prefill(PROMPT)
    found = whole.log_probabilities(PROMPT)
    torch.testing.assert_close(found, torch.tensor([[-0.5, -2.0], [-1.0, -3.0]]))
    [(prompts, settings)] = asked
    assert prompts == [{"prompt_token_ids": row} for row in PROMPT.tolist()]
    assert (settings.prompt_logprobs, settings.max_tokens) == (1, 1)
    assert whole.requests.names == (), "what was decoded is let go first: it would go on meanwhile"


def flat(*places: torch.Tensor | None) -> SimpleNamespace:
    """Stands for vLLM's FlatLogprobs: of each place all tokens, the likeliest first; nothing of one that is None."""
    found = SimpleNamespace(start_indices=[], end_indices=[], token_ids=[], logprobs=[])
    for place in places:
        found.start_indices.append(len(found.token_ids))
        if place is not None:
            order = place.argsort(descending=True)
            found.token_ids += order.tolist()
            found.logprobs += place[order].tolist()
        found.end_indices.append(len(found.token_ids))
    return found


def test_logits_are_those_of_all_tokens_in_each_place_and_behind_the_last_one() -> None:
    """Asked for one text after the other: what vLLM hands over takes gigabytes."""
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn((2, 3, 5), generator=generator).log_softmax(-1)
    asked: list[Any] = []

    def generate(prompts: list[dict[str, list[int]]], settings: Any, **_: Any) -> list[Any]:
        row = expected[len(asked)]
        asked.append((prompts, settings))
        return [SimpleNamespace(prompt_logprobs=flat(None, *row[:2]), outputs=[SimpleNamespace(logprobs=flat(row[2]))])]

    whole = engine(generate=generate)
    whole.begin(20).prefill(PROMPT)
    found = whole.logits(PROMPT)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    assert [prompts for prompts, _ in asked] == [[{"prompt_token_ids": row}] for row in PROMPT.tolist()]
    assert {(each.prompt_logprobs, each.logprobs, each.flat_logprobs, each.max_tokens) for _, each in asked} == {
        (-1, -1, True, 1)
    }
    assert whole.requests.names == ()
    assert arguments(Path(), tiny_model("llama").config, DESCRIPTION)["max_logprobs"] == -1
    with pytest.raises(Unsupported, match=r"has 64 positions .* need 65"):
        whole.logits(torch.zeros(1, 64, dtype=torch.int64))


def test_what_it_cannot_give_is_refused_in_words() -> None:
    with pytest.raises(Unsupported, match=r"no encoder here \(2 texts given\)"):
        engine().encode(PROMPT)


def test_weights_are_counted_where_the_engine_has_them() -> None:
    model = tiny_model("llama")
    whole = engine(apply_model=lambda count: [count(model)])
    assert whole.bytes_held == sum(each.nbytes for each in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("before", [None, "1"])
def test_the_engine_is_made_in_this_process(
    before: str | None, library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(vllm.APART, raising=False)
    if before is not None:
        monkeypatch.setenv(vllm.APART, before)
    library.LLM = lambda **options: (os.environ[vllm.APART], options)
    assert started({"model": "here"}) == ("0", {"model": "here"})
    assert os.environ.get(vllm.APART) == before

    def refuse(**_: Any) -> None:
        raise ValueError("Failed to find a kernel\nthat can implement the layer")

    library.LLM = refuse
    with pytest.raises(Unsupported, match=r"\(Failed to find a kernel that can implement the layer\); .* docs/vllm.md"):
        started({})
    assert os.environ.get(vllm.APART) == before
