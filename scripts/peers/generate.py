"""Time a transformers folder as a latency-and-memory tool does: load, warm up, generate, repeat; print what was seen.

A plain stand-in for optimum-benchmark, whose last release (0.6.0) does not import under transformers 5. Like it, it
times whole calls: a first token (the prompt), and a generation, from which the rest follows.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def seconds(model: PreTrainedModel, prompt: torch.Tensor, tokens: int) -> float:
    """Return the seconds in which the model greedily generates exactly ``tokens`` tokens behind (batch, n) prompts."""
    started = time.perf_counter()
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        pad_token_id=0,
    )
    return time.perf_counter() - started


def main() -> None:
    """Print JSON: first_token_s and generate_s, of each repetition, and rss_bytes afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for name in ("threads", "batch", "prompt", "tokens", "warmup", "iterations"):
        parser.add_argument(f"--{name}", type=int, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = AutoModelForCausalLM.from_pretrained(asked.folder, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.config.vocab_size, (asked.batch, asked.prompt), generator=generator)
    found = {"first_token_s": 1, "generate_s": asked.tokens}
    times: dict[str, list[float] | int] = {}
    for name, tokens in found.items():
        every = [seconds(model, prompt, tokens) for _ in range(asked.warmup + asked.iterations)]
        times[name] = every[asked.warmup :]
    print(json.dumps({**times, "rss_bytes": psutil.Process().memory_info().rss}))


if __name__ == "__main__":
    main()
