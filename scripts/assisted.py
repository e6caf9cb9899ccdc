"""Hold drafting against transformers' assisted generation, behind the same prompts: by texts, by steps, and by time.

The draft of an artifact is transformers' assistant, or its prompt look-up where the text itself guesses; as many tokens
are guessed, always. Both begin behind the same first token, so that their steps are the same where both are right. Each
way reads the prompt and decodes, once a prompt, the order turned round every time; times are of all that.

    python -m scripts.assisted "$(squeeze build technique=speculative_rtn bits=4 dtype=float32)" --threads 2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig

from squeeze.core.errors import SqueezeError
from squeeze.core.process import settle
from squeeze.layers.drafting import ByLookup
from squeeze.models.subject import Subject
from squeeze.request.expand import cells
from squeeze.runtimes.contract import Engine
from squeeze.runtimes.eager import Eager
from squeeze.runtimes.speculative import SpeculativeEngine
from squeeze.sources.prompts import KINDS, prompt

CORPUS = "wikipedia_eval"
WAYS = ("plain", "ours", "transformers")


class Said(NamedTuple):
    """Hold what was said behind a prompt. steps: how many tokens each call gave; the first token is none of them."""

    tokens: list[int]
    steps: list[int]


@dataclass
class Heard:
    """Hear what transformers says, part by part: the prompt, and then what each step gives."""

    parts: list[list[int]]

    def put(self, tokens: Tensor) -> None:
        """Take the next part."""
        self.parts.append(tokens.flatten().tolist())

    def end(self) -> None:
        """Take note that nothing follows."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of an artifact with a draft")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=4, help="of each kind (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help="behind each (default: %(default)s)")
    options = parser.parse_args()
    engine = loaded(options.folder, options.threads)
    print("| kind | the same text | the same steps | accepted a step | tokens/s plain | ours | transformers |")
    print("| :-- | --: | --: | --: | --: | --: | --: |")
    for line in lines(engine, options.prompts, options.tokens):
        print(line, flush=True)


def loaded(folder: Path, threads: int) -> SpeculativeEngine:
    """Return an artifact that drafts, in a process that is set up for it. Raises SqueezeError for one that does not."""
    (cell,) = cells(["model=tiny_llama", "technique=none", "device=cpu", f"threads={threads}"])
    settle(cell.runtime, 0)
    engine = Eager("cpu", threads).load(folder)
    if not isinstance(engine, SpeculativeEngine):
        raise SqueezeError(
            f"{folder}: there is no draft, expected one; build technique=prompt_lookup, or speculative_rtn"
        )
    return engine


def compared(engine: SpeculativeEngine, texts: Sequence[Tensor], tokens: int) -> list[dict[str, tuple[Said, float]]]:
    """Return, of each text, (1, n) int64, what each way said behind it and in how many seconds."""
    said_by = (partial(ours, engine.undrafted), partial(ours, engine), partial(theirs, engine.subject))
    ways = dict(zip(WAYS, said_by, strict=True))
    for way in ways.values():  # what is compiled on first use is not timed
        way(texts[0], 4)
    found = []
    for number, text in enumerate(texts):
        order = list(ways)[:: -1 if number % 2 else 1]
        said = {name: timed(partial(ways[name], text, tokens)) for name in order}
        found.append({name: said[name] for name in WAYS})
    return found


def timed(call: Callable[[], Said]) -> tuple[Said, float]:
    """Return what a call said, and its seconds."""
    begun = time.perf_counter()
    said = call()
    return said, time.perf_counter() - begun


def ours(engine: Engine, text: Tensor, tokens: int) -> Said:
    """Let an engine of ours say so many tokens behind a text, (1, n) int64."""
    generation, steps = engine.begin(text.shape[1] + tokens), []
    chosen = generation.prefill(text).shape[1]
    while chosen < tokens:
        steps.append(generation.decode().shape[1])
        chosen += steps[-1]
    return Said(generation.token_ids()[0], steps)


def theirs(subject: Subject, text: Tensor, tokens: int) -> Said:
    """Let transformers say so many tokens behind a text, (1, n) int64, with the subject's draft.

    Its first step would guess behind the prompt; so that its steps are ours, it begins behind the first token.
    """
    draft, model = subject.draft, _endless(subject.model)
    assert draft is not None
    asked: dict[str, Any] = {"do_sample": False, "max_new_tokens": tokens - 1, "pad_token_id": 0}
    helped: dict[str, Any] = {}
    if draft.subject is not None:
        assistant = _endless(draft.subject.model)
        assistant.generation_config.num_assistant_tokens = draft.how.drafted_tokens
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        assistant.generation_config.assistant_confidence_threshold = 0.0  # all are guessed, however unsure
        helped["assistant_model"] = assistant
    elif isinstance(draft.how, ByLookup):
        asked |= {"prompt_lookup_num_tokens": draft.how.drafted_tokens, "max_matching_ngram_size": draft.how.longest}
    with torch.inference_mode():
        first = model(input_ids=text, use_cache=False, logits_to_keep=1).logits[:, -1:].argmax(-1)
    heard = Heard([])
    begun = torch.cat([text, first], dim=1)
    model.generate(begun, generation_config=GenerationConfig(**asked), streamer=heard, **helped)
    _, *parts = heard.parts
    return Said([int(first), *(token for part in parts for token in part)], [len(part) for part in parts])


def _endless(model: Any) -> Any:
    """Let transformers' generation with a model end at no token, as ours does."""
    model.generation_config.eos_token_id = None
    return model


def row(kind: str, found: Sequence[dict[str, tuple[Said, float]]], tokens: int) -> str:
    """Return a line of the table: of prompts of a kind."""
    texts = sum(len({tuple(said.tokens) for said, _ in each.values()}) == 1 for each in found)
    steps = sum(each["ours"][0].steps == each["transformers"][0].steps for each in found)
    given = [count for each in found for count in each["ours"][0].steps]
    rates = [tokens * len(found) / sum(each[way][1] for each in found) for way in WAYS]
    accepted = sum(given) / len(given) - 1
    cells_of = (f"{texts}/{len(found)}", f"{steps}/{len(found)}", f"{accepted:.2f}", *(f"{rate:.1f}" for rate in rates))
    return f"| {kind} | {' | '.join(cells_of)} |"


def lines(engine: SpeculativeEngine, prompts: int, tokens: int) -> Iterator[str]:
    """Yield the lines of the table, by kind of prompt."""
    for kind in KINDS:
        texts = [prompt(kind, number, engine.tokenizer, CORPUS) for number in range(prompts)]
        yield row(kind, compared(engine, texts, tokens), tokens)


if __name__ == "__main__":
    main()
