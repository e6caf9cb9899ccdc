"""Define what a runtime must provide, and find the one that a cell names. Imports no torch.

Probes and benches know runtimes by this file alone. What any engine can give is `Engine`; `TorchEngine` adds what
torch sees of a model: its weights, and the hidden states from which text is scored in packed rows. An engine without
them (llama.cpp, ONNX Runtime) keeps to `Engine`, and its `logits` of token ids are how text is scored, and how it is
held against the eager model (`squeeze.probes.parity`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard

from squeeze.core import plugins
from squeeze.core.errors import SqueezeError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from squeeze.models.subject import Subject

NO_FIELDS = frozenset({"name", "_target_"})  # of a cell's runtime: what people call it, and its class

States = Callable[..., "Tensor"]  # (model, **inputs) -> (rows, tokens, hidden)


class Generation(Protocol):
    """Run one greedy generation, of every row of a batch at once. Each call returns when the device is done."""

    def prefill(self, prompt: Tensor) -> Tensor:
        """Read the prompt, (rows, tokens) int64, and return the first token of each row, (rows, 1) int64."""

    def decode(self) -> Tensor:
        """Return the next tokens of each row, (rows, n) int64: one or, of a generation that drafts, one or more.

        Rows go on together: each gets as many. Raises IndexError before any prefill.
        """

    def token_ids(self) -> list[list[int]]:
        """Return the tokens chosen so far, a list for each row."""

    @property
    def bytes_per_token(self) -> float:
        """Return the bytes kept of one token of one row, averaged over those read so far: keys, values, scales."""


class Step(NamedTuple):
    """Count what came of one call of ``decode`` that drafts.

    drafted: tokens that were guessed, for each row; accepted: of them, those that the model chose itself and that stand
    in the text. The call returned one token more than were accepted.
    """

    drafted: int
    accepted: int


class DraftingGeneration(Generation, Protocol):
    """Run one greedy generation whose next tokens are guessed, and verified several at a time."""

    @property
    def steps(self) -> Sequence[Step]:
        """Return what came of each call of ``decode`` so far."""


class Engine(Protocol):
    """Run an artifact that a runtime has loaded."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer whose ids it reads."""

    @property
    def bytes_held(self) -> int:
        """Count the bytes of weights in memory, those that share memory once."""

    @property
    def scored_as(self) -> str:
        """Name the runtime whose forward scores text: "itself" where it is the one that is timed."""

    @property
    def exact(self) -> bool:
        """Tell whether it computes with the artifact's own weights, in floating point: nothing but rounding is its own.

        False where it quantizes weights further, or what is multiplied with them.
        """

    def begin(self, positions: int) -> Generation:
        """Begin a generation of at most so many tokens, the prompt's among them; nothing is computed yet.

        Raises Unsupported when the model has fewer positions.
        """

    def encode(self, token_ids: Tensor) -> Tensor:
        """Run an encoder, (rows, tokens) int64 -> (rows, tokens, hidden), or a classifier, -> (rows, classes).

        It returns when the device is done. Raises Unsupported when the model has fewer positions.
        """

    def logits(self, token_ids: Tensor) -> Tensor:
        """Return the logits after each given token, by the forward that is timed.

        token_ids: (rows, tokens) int64 -> (rows, tokens, vocabulary) float32. Raises Unsupported as ``begin`` does.
        """

    def log_probabilities(self, token_ids: Tensor) -> Tensor:
        """Return how likely each given token is after those before it, in nats, by the forward that is timed.

        token_ids: (rows, tokens) int64 -> (rows, tokens - 1) float32: nothing predicts the first token.
        """


class TorchEngine(Engine, Protocol):
    """Run an artifact with a model that torch can look into."""

    @property
    def subject(self) -> Subject:
        """Return the model, its tokenizer and its claims."""

    @property
    def states(self) -> States:
        """Return what computes hidden states where text is scored: (model, **inputs) -> (rows, tokens, hidden)."""


class DraftingEngine(Engine, Protocol):
    """Run an artifact whose next tokens are guessed by something cheaper; what it says is what it would say without."""

    @property
    def undrafted(self) -> Engine:
        """Return the same model, in the same memory, whose generations choose one token a call."""

    def begin(self, positions: int) -> DraftingGeneration:
        """Begin a generation, as any engine does; it guesses no token beyond ``positions``."""


class Runtime(Protocol):
    """Define a runtime: a frozen dataclass in a file of squeeze/runtimes/; its fields are the YAML's keys but ``name``.

    device: "cpu", "cuda" or "cuda:N". threads: those that the process has been given to compute with. A field that is
    declared as ``Literal[...]`` has one of these values, which requests are held against. One whose library lies in an
    environment of its own says which, and may say on which kind of device alone it runs: ``environment: ClassVar[str]``
    and ``only_on: ClassVar[str]`` (`squeeze.runtimes.environments`); one that compiles in processes and threads of its
    own has ``compiles``, which is true.
    """

    @property
    def device(self) -> str: ...  # noqa: D102 - see above

    @property
    def threads(self) -> int: ...  # noqa: D102

    def load(self, folder: Path) -> Engine:
        """Load an artifact. Raises Unsupported for one that cannot run here, IntegrityError for a damaged folder."""


def shows_model(engine: Engine) -> TypeGuard[TorchEngine]:
    """Tell whether torch can look into an engine's model."""
    return hasattr(engine, "subject")


def drafts(engine: Engine) -> TypeGuard[DraftingEngine]:
    """Tell whether an engine's generations draft."""
    return hasattr(engine, "undrafted")


def compiles(runtime: Mapping[str, Any]) -> bool:
    """Tell whether a cell's runtime starts processes and threads that compile. Raises SqueezeError as ``of`` does."""
    return bool(getattr(of(runtime), "compiles", False))


def of(runtime: Mapping[str, Any]) -> Runtime:
    """Return the runtime of a cell, whose fields ``runtime`` holds.

    Raises SqueezeError where it names none, and for fields that are not those of the class.
    """
    target = current(runtime)["_target_"]
    kind, given = find(target), {name: value for name, value in current(runtime).items() if name not in NO_FIELDS}
    known = {field.name: field for field in dataclasses.fields(kind)}
    needed = {name for name, field in known.items() if field.default is field.default_factory is dataclasses.MISSING}
    if wrong := sorted(given.keys() - known.keys() | needed - given.keys()):
        raise SqueezeError(
            f"runtime {target!r} is refused: its class {'needs' if wrong[0] in needed else 'has no field'} {wrong[0]};"
            f" expected {', '.join(known)}"
        )
    made: Runtime = kind(**given)
    return made


def current(runtime: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell's runtime as it is asked for today: old records have ``compile`` in place of ``_target_``."""
    fields = dict(runtime)
    if "compile" in fields:
        fields["_target_"] = "compiled.Compiled" if fields.pop("compile") else "eager.Eager"
    return fields


def find(target: str) -> type[Any]:
    """Return the class that FILE.CLASS, such as ``eager.Eager``, or PLUGIN:FILE.CLASS names.

    Raises SqueezeError unless it is a dataclass with ``load`` that this very file of squeeze/runtimes or of an
    installed plugin defines.
    """
    made = plugins.load(plugins.find("runtimes", target))
    if not (dataclasses.is_dataclass(made) and callable(getattr(made, "load", None))):
        raise SqueezeError(f"runtime {target!r} is refused: expected a dataclass with a method load")
    return made


def module(runtime: Mapping[str, Any]) -> str:
    """Return the name of the module that defines a cell's runtime. Raises SqueezeError where there is none."""
    return plugins.find("runtimes", current(runtime)["_target_"]).module
