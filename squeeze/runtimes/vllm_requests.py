"""Keep the requests that vLLM is at work on, and take its steps: those of one generation at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from squeeze.core.errors import SqueezeError


@dataclass
class Requests:
    """Hold the requests that an engine is at work on: those of one generation at a time.

    engine: vLLM's ``LLMEngine``. names: of these requests. begun: how many generations there were.
    """

    engine: Any
    names: tuple[str, ...] = ()
    begun: int = 0

    def begin(self, prompts: Sequence[Sequence[int]], settings: Any) -> tuple[str, ...]:
        """Ask for a continuation of each prompt, and return the requests' names; what was asked before is let go."""
        self.stop()
        self.begun += 1
        self.names = tuple(f"{self.begun}/{row}" for row in range(len(prompts)))
        for name, prompt in zip(self.names, prompts, strict=True):
            self.engine.add_request(name, {"prompt_token_ids": list(prompt)}, settings)
        return self.names

    def step(self) -> dict[str, list[int]]:
        """Take one step; return all tokens so far of the requests that got one, by name.

        Raises SqueezeError where there is nothing left to do.
        """
        if not self.engine.has_unfinished_requests():
            raise SqueezeError("vllm has no request left; expected fewer tokens than were asked for as it began")
        return {output.request_id: list(output.outputs[0].token_ids) for output in self.engine.step()}

    def stop(self) -> None:
        """Let all requests go."""
        if self.names:
            self.engine.abort_request(list(self.names))
        self.names = ()
