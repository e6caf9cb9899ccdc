"""See what of this process's global state changed between two moments: a model that runs must leave all of it alone.

More threads, another precision, a function of torch's that was replaced: whatever a model sets for the whole process
speeds up what is no part of it, or changes what measures it. Processes are compared with themselves, before an artifact
is loaded and after it was timed, and with the baseline's beside them.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import psutil
import torch
from torch.nn.modules import module as module_hooks
from torch.utils import _python_dispatch

from squeeze.core.hashing import digest
from squeeze.runtimes import contract, environments

# Whose functions and classes nobody may replace: what computes, what is computed with, and what measures.
WATCHED = (
    *("torch", "torch.nn.functional", "torch.nn", "torch.nn.modules.module", "torch.nn.modules.linear"),
    *("torch.nn.modules.sparse", "torch.nn.modules.normalization", "torch.nn.modules.activation"),
    *(
        "transformers.masking_utils",
        "transformers.cache_utils",
        "transformers.modeling_utils",
        "transformers.activations",
    ),
    *("transformers.integrations.sdpa_attention", "time", "statistics"),
    *(
        "squeeze.runtimes.generation",
        "squeeze.runtimes.eager",
        "squeeze.runtimes.compiled",
        "squeeze.runtimes.kv_cache",
        "squeeze.runtimes.speculative",
        "squeeze.layers.drafting",
    ),
    *(f"squeeze.runtimes.{name}" for name in ("lean", "lean_model", "lean_block", "lean_products", "static_cache")),
    *(f"squeeze.runtimes.{name}" for name in ("attention", "pictured", "exported", "onnx", "openvino")),
    *(f"squeeze.runtimes.{name}" for name in ("llama_cpp", "llama_context", "vllm", "vllm_requests", "vllm_scores")),
    *("squeeze.probes.latency", "squeeze.probes.scoring", "squeeze.probes.teacher_forced", "squeeze.probes.turns"),
    *("squeeze.probes.first_tokens", "squeeze.probes.rounding", "squeeze.probes.scorer", "squeeze.probes.drafting"),
    *("squeeze.probes.samples", "squeeze.models.logits", "squeeze.models.architecture", "pytest_benchmark.fixture"),
)
CLASSES = (torch.Tensor,)  # beside those of these modules
# Pytest names the test that runs. CUDA and OpenMP variables count only where a process starts: all others are heeded.
VOLATILE = frozenset({"PYTEST_CURRENT_TEST", "PYTEST_VERSION"})
# What honest libraries do as they are imported, with the artifact that needs them: torch's own compiler names its cache
# and keeps itself out of one function; transformers gives modules a way to be initialised; tqdm watches its bars from a
# thread.
MODULE = "torch.nn.modules.module.Module"
HARMLESS = frozenset(
    {
        *("variable TORCHINDUCTOR_CACHE_DIR", "torch.manual_seed", "code of torch.manual_seed"),
        f"{MODULE}.smart_apply",
    }
)
WATCHERS = frozenset({"TMonitor"})  # classes of threads
# What a runtime that compiles does besides: its compilers are processes, and threads that wait for them; modules are
# told apart by when they were made.
COMPILERS = frozenset(
    {
        *("threads", "children", "variable TRITON_CACHE_DIR", "variable _TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"),
        *(f"{of}{MODULE}.{name}" for of in ("", "code of ") for name in ("__init__", "__setstate__")),
        f"{MODULE}.___needs_generation_tag_patch",
    }
)
# Libraries of an engine's own environment may do the same as they are loaded, or as an export is traced for them, and
# set any variable: no artifact brings them.
VARIABLE = "variable "
# Times as many processors as a process was given threads: two libraries may bring a pool each, whose threads spin for a
# moment before they sleep.
BUSY = 2.0

State = dict[str, str]


@dataclass(frozen=True)
class Snapshot:
    """Hold a moment: what is set, in words by name, and what is watched, by name, which is the very same or another.

    classes: the names of the methods that each watched class defines: one may be added that hides what it inherits.
    """

    settings: State
    functions: Mapping[str, Any]
    classes: Mapping[str, frozenset[str]]
    modules: tuple[str, ...] = ()

    @classmethod
    def now(cls, modules: tuple[str, ...] = ()) -> Snapshot:
        """Return the state of this process. modules: further ones whose functions are watched, such as a model's."""
        watched = [
            module for name in (*WATCHED, *modules) if (module := sys.modules.get(name))
        ]  # none is imported here
        classes = [*CLASSES, *(kind for module in watched for kind in _own_classes(module))]
        functions = [trait for module in watched for trait in _functions(module)]
        methods = [trait for kind in classes for trait in _methods(kind)]
        names = {f"{kind.__module__}.{kind.__qualname__}": frozenset(_own_methods(kind)) for kind in classes}
        return cls(dict(_settings()), dict([*functions, *methods]), names, modules)

    def changes(self) -> list[str]:
        """Name what is otherwise now: ``threads to compute with (2 before, 4 after)``."""
        later = Snapshot.now(self.modules)
        found = [
            f"{name} ({one} before, {other} after)"
            for name in sorted(self.settings.keys() | later.settings.keys())
            if (one := self.settings.get(name, "not set")) != (other := later.settings.get(name, "not set"))
        ]
        found += [name for name, one in self.functions.items() if later.functions.get(name) is not one]
        both = self.classes.keys() & later.classes.keys()
        return found + [f"{kind}.{each}" for kind in sorted(both) for each in later.classes[kind] - self.classes[kind]]


def dishonest(changes: Iterable[str], runtime: Mapping[str, Any]) -> list[str]:
    """Return the changes that no honest library makes under a cell's runtime."""
    elsewhere = environments.of(runtime) is not None
    harmless = HARMLESS | COMPILERS if elsewhere or contract.compiles(runtime) else HARMLESS
    return [
        change
        for change in changes
        if change.partition(" (")[0] not in harmless and not (elsewhere and change.startswith(VARIABLE))
    ]


def too_busy(processors: Mapping[str, float], runtime: Mapping[str, Any]) -> list[str]:
    """Name the calls that ran on more processors than the runtime has threads, whatever torch says of them.

    processors: kind of call and batch size -> seconds of processor time a second. Those of a GPU have no limit.
    """
    if runtime["device"] != "cpu":
        return []
    return [
        f"{name} used {used:.2f} processors, was given {runtime['threads']} threads"
        for name, used in processors.items()
        if used > BUSY * int(runtime["threads"])
    ]


def _settings() -> Iterator[tuple[str, str]]:
    """Yield what is set for the whole process, by a name that people know, in words."""
    for name, value in (
        ("threads to compute with", torch.get_num_threads()),
        ("interop threads", torch.get_num_interop_threads()),
        ("default dtype", torch.get_default_dtype()),
        ("default device", torch.get_default_device()),
        ("precision of float32 products", _product_precision()),
        ("precision of oneDNN", torch.backends.mkldnn.matmul.fp32_precision),  # type: ignore[attr-defined]
        ("oneDNN", torch._C._get_mkldnn_enabled()),
        ("NNPACK", torch._C._get_nnpack_enabled()),
        ("engine of integer products", torch.backends.quantized.engine),
        ("deterministic algorithms", torch.are_deterministic_algorithms_enabled()),
        ("gradients", torch.is_grad_enabled()),
        ("inference mode", torch.is_inference_mode_enabled()),
        ("autocast", [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")]),
        ("anomaly detection", torch.is_anomaly_enabled()),
        ("flush of denormal numbers", _flushes_denormals()),
        ("TF32 and reduced precision on CUDA", _cuda_precisions()),
        ("kinds of attention", _attentions()),
        ("modes of torch functions", torch._C._len_torch_function_stack()),
        ("modes of dispatch", len(_python_dispatch._get_current_dispatch_mode_stack())),
        (
            "hooks of all modules",
            [len(getattr(module_hooks, name)) for name in sorted(vars(module_hooks)) if _is_hooks(name)],
        ),
        ("tracing", [sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()]),
        ("switch interval", sys.getswitchinterval()),
        ("garbage collector", [gc.get_threshold(), len(gc.callbacks)]),
        ("threads", sorted(each.name for each in threading.enumerate() if type(each).__name__ not in WATCHERS)),
        ("children", len(psutil.Process().children())),
        ("processors", sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []),
        ("priority", [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)] if sys.platform == "linux" else []),
    ):
        yield name, str(value)
    for number in sorted(signal.valid_signals()):
        yield f"signal {signal.Signals(number).name if number in set(signal.Signals) else number}", _handler(number)
    for name, value in os.environ.items():
        if name not in VOLATILE:
            yield f"variable {name}", digest(value)[:8]  # nobody is told what it holds


def _is_hooks(name: str) -> bool:
    return name.startswith("_global_") and name.endswith("_hooks")


def _handler(number: int) -> str:
    handler = signal.getsignal(number)
    name = getattr(handler, "__qualname__", None)
    return str(handler) if name is None else f"{getattr(handler, '__module__', '')}.{name}"


def _product_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch's older and newer functions at once
        return "mixed"


def _flushes_denormals() -> bool:
    """Tell whether numbers too small for a normal float are taken for zero."""
    return float(torch.tensor(1e-40) * 1) == 0.0


def _cuda_precisions() -> list[bool]:
    matmul = torch.backends.cuda.matmul
    return [
        torch._C._get_cublas_allow_tf32(),
        torch._C._get_cudnn_allow_tf32(),
        bool(matmul.allow_fp16_reduced_precision_reduction),
        bool(matmul.allow_bf16_reduced_precision_reduction),
    ]


def _attentions() -> list[bool]:
    cuda: Any = torch.backends.cuda
    return [cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled()]


def _own_classes(module: ModuleType) -> list[type]:
    return [
        each for each in list(vars(module).values()) if isinstance(each, type) and each.__module__ == module.__name__
    ]


def _functions(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield all functions and classes of a module, by name, and the code of each."""
    for attribute, value in list(vars(module).items()):
        if callable(value):
            yield from _traits(f"{module.__name__}.{attribute}", value)


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield all methods of a class, as ``_functions`` does of a module."""
    for attribute, value in _own_methods(kind).items():
        yield from _traits(f"{kind.__module__}.{kind.__qualname__}.{attribute}", value)


def _own_methods(kind: type) -> dict[str, Any]:
    """Return what a class defines that runs; values that it keeps for its instances are its own affair."""
    return {
        name: value
        for name, value in list(vars(kind).items())
        if callable(value) or isinstance(value, property | classmethod | staticmethod)
    }


def _traits(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield name, value
    if (code := getattr(value, "__code__", None)) is not None:
        yield f"code of {name}", code
