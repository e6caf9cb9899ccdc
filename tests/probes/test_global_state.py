"""What belongs to the whole process is seen to change; honest libraries change nothing that is not allowed by name."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from squeeze.layers.contract import prepare_layers
from squeeze.probes.global_state import Snapshot, dishonest, too_busy
from squeeze.runtimes.compiled import Compiled
from squeeze.runtimes.contract import Runtime
from squeeze.runtimes.eager import Eager
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.bitsandbytes import Float4, LLMInt8
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.torch_dynamic import TorchDynamic
from squeeze.techniques.quantization.torchao import Int8 as TorchAO
from tests.foreign import offer
from tests.tiny import CAUSAL, tiny_subject

NO_DATA = CalibrationText.empty()
EAGER = {"_target_": "eager.Eager", "device": "cpu", "threads": 2}
COMPILED = {**EAGER, "_target_": "compiled.Compiled"}


@contextmanager
def put(setter: Callable[[Any], object], value: Any, before: Any) -> Any:
    setter(value)
    yield
    setter(before)


@contextmanager
def a_hook() -> Any:
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    yield
    hook.remove()


@contextmanager
def a_thread() -> Any:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="helper")
    thread.start()
    yield
    over.set()
    thread.join()


class Mode(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@contextmanager
def added_method() -> Any:
    nn.Linear.__call__ = nn.Module.__call__  # type: ignore[method-assign]
    yield
    del nn.Linear.__call__


@contextmanager
def a_product_of_its_own() -> Any:
    torch.Tensor.__matmul__ = lambda one, other: torch.matmul(one, other)  # type: ignore[method-assign,assignment]
    yield
    del torch.Tensor.__matmul__


def patched(where: Any, name: str) -> AbstractContextManager[None]:
    true = getattr(where, name)
    return put(lambda value: setattr(where, name, value), lambda *given, **named: true(*given, **named), true)


CHANGES = {
    "oneDNN": lambda: put(torch._C._set_mkldnn_enabled, False, True),
    "precision of oneDNN": lambda: put(
        lambda v: setattr(torch.backends.mkldnn.matmul, "fp32_precision", v), "bf16", "none"
    ),
    "default dtype": lambda: put(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "deterministic algorithms": lambda: put(torch.use_deterministic_algorithms, True, False),
    "autocast": lambda: put(lambda on: torch.set_autocast_enabled("cpu", on), True, False),
    "gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "flush of denormal numbers": lambda: put(torch.set_flush_denormal, True, False),
    "kinds of attention": lambda: put(torch.backends.cuda.enable_math_sdp, False, True),
    "modes of torch functions": Mode,
    "hooks of all modules": a_hook,
    "tracing": lambda: put(sys.setprofile, lambda *_: None, None),
    "switch interval": lambda: put(sys.setswitchinterval, 0.1, sys.getswitchinterval()),
    "threads": a_thread,
    "signal SIGUSR1": lambda: put(lambda to: signal.signal(signal.SIGUSR1, to), signal.SIG_IGN, signal.SIG_DFL),
    "variable MALLOC_ARENA_MAX": lambda: put(
        lambda to: os.environ.update(to) if to else os.environ.pop("MALLOC_ARENA_MAX"), {"MALLOC_ARENA_MAX": "1"}, None
    ),
    "torch.nn.functional.linear": lambda: patched(F, "linear"),
    "torch.nn.functional.scaled_dot_product_attention": lambda: patched(F, "scaled_dot_product_attention"),
    "torch.nn.modules.linear.Linear.forward": lambda: patched(nn.Linear, "forward"),
    "torch.Tensor.__matmul__": a_product_of_its_own,
    "torch.nn.modules.linear.Linear.__call__": added_method,
}


def names(changes: list[str]) -> list[str]:
    return [change.partition(" (")[0] for change in changes]


@pytest.mark.promise(16)
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_named_and_its_end_too(name: str) -> None:
    before = Snapshot.now()
    with CHANGES[name]():
        found = before.changes()
    assert name in names(dishonest(found, EAGER))
    assert name not in names(before.changes())


def test_a_change_of_threads_is_named_with_both_numbers() -> None:
    threads = torch.get_num_threads()
    before = Snapshot.now()
    with put(torch.set_num_threads, threads + 1, threads):
        assert dishonest(before.changes(), EAGER) == [
            f"threads to compute with ({threads} before, {threads + 1} after)"
        ]


def test_nobody_is_told_what_a_variable_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Snapshot.now()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    [change] = before.changes()
    assert change.startswith("variable HF_TOKEN")
    assert "secret" not in change


def decoding(runtime: Runtime, *techniques: Any) -> list[str]:
    """What changes where a model is compressed, prepared, and decodes."""
    subject = tiny_subject("llama")
    before = Snapshot.now(("transformers.models.llama.modeling_llama",))
    for technique in techniques:
        subject = technique.apply(subject, NO_DATA)
    prepare_layers(subject.model)
    generation = runtime.engine(subject).begin(24)  # type: ignore[attr-defined]
    generation.prefill(torch.arange(16)[None])
    for _ in range(4):
        generation.decode()
    return before.changes()


@pytest.mark.parametrize("name", CAUSAL)
def test_loading_and_running_a_model_changes_nothing(name: str) -> None:
    before = Snapshot.now()
    tiny_subject(name).model(input_ids=torch.arange(8)[None])
    assert dishonest(before.changes(), EAGER) == []


@pytest.mark.parametrize(
    "technique",
    [
        RoundToNearest(4, 32, symmetric=True),
        TorchDynamic(per_channel=True, activation_bits=7),
        TorchAO(dynamic=True),
        LLMInt8(6.0),
        Float4("nf4", double_quant=True),
    ],
    ids=lambda technique: type(technique).__name__,
)
def test_honest_libraries_change_nothing_else_than_is_allowed(technique: Any) -> None:
    assert dishonest(decoding(Eager("cpu", 1), technique), EAGER) == []


def test_a_runtime_that_compiles_may_start_compilers_and_others_may_not() -> None:
    changes = ["threads ([] before, ['worker'] after)", "children (0 before, 2 after)"]
    assert dishonest(changes, COMPILED) == []
    assert dishonest(changes, EAGER) == changes
    assert dishonest(["oneDNN (True before, False after)"], COMPILED) != []


def test_libraries_of_an_engines_environment_may_start_threads_and_set_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No artifact brings them. Of torch, and of what measures, they leave their hands as all others do."""
    offer(tmp_path / "site", monkeypatch, {"toy": "toy-engine==1.0"})
    toy = {**EAGER, "_target_": "toys:toy.Toy"}
    theirs = ["threads ([] before, ['pool'] after)", "variable ANY (not set before, 1a2b after)"]
    theirs.append("code of torch.nn.modules.module.Module.__init__")  # of torch's tracer, where an export is made
    ours = ["oneDNN (True before, False after)", "torch.nn.functional.linear"]
    assert dishonest([*theirs, *ours], toy) == ours
    assert dishonest(theirs, EAGER) == theirs


def test_more_processors_than_threads_are_seen() -> None:
    assert too_busy({"token_s/1": 1.95, "ttft_s/1": 2.9}, EAGER) == []
    assert too_busy({"token_s/1": 4.5, "ttft_s/1": 2.1}, EAGER) == [
        "token_s/1 used 4.50 processors, was given 2 threads"
    ]
    assert too_busy({"token_s/1": 4.5}, {**EAGER, "device": "cuda"}) == []


@pytest.mark.timed
def test_compiling_changes_nothing_else_than_is_allowed() -> None:
    assert dishonest(decoding(Compiled("cpu", 1)), COMPILED) == []
