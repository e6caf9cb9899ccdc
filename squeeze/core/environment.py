"""Describe the measuring environment: what a timing depends on besides the cell. Imports no torch.

    hardware, software   what the fingerprint covers: timings with unlike ones are never compared
    engine               of a row whose engine lies in an environment of its own: the packages of that; covered, too
    code                 the commit that measured, and whether squeeze, conf or benches differed from it
    state                what changes by the minute (load, GPU clocks); kept before and after, never part of an identity

Nothing here names a person, a host or a path.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import squeeze
from squeeze.core import plugins
from squeeze.core.hashing import digest

# Distributions whose version can move a figure: a record keeps them all.
DISTRIBUTIONS = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gguf",
    "lm-eval",
    "numpy",
    "peft",
    "pytest",
    "pytest-benchmark",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "torchao",
    "transformers",
)
# Those that every measuring process imports: the fingerprint covers them, and squeeze itself. What a technique brings
# beyond them (peft, bitsandbytes, torchao) is in the artifact keys of the rows that use it, and moves no other row.
MEASURING = frozenset(
    {
        *("squeeze", "torch", "transformers", "tokenizers", "safetensors", "numpy"),
        *("pytest", "pytest-benchmark", "lm-eval", "datasets"),
    }
)
VERSIONS = "software.versions."
ENGINE = "engine"
# Environment variables that set threads, instruction sets, allocators or visible devices.
VARIABLE_PREFIXES = (
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "OPENBLAS_",
    "ONEDNN_",
    "DNNL_",
    "ATEN_",
    "MALLOC_",
    "CUDA_VISIBLE",
)
CPUS, CGROUP = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup")
CODE_FOLDERS = ("squeeze", "conf", "benches")
GPU_FIELDS = ("name", "uuid", "driver_version", "memory.total", "clocks.max.sm", "power.limit")
GPU_STATE_FIELDS = ("clocks.sm", "temperature.gpu", "clocks_throttle_reasons.active")


def describe() -> dict[str, Any]:
    """Return the environment of this process as plain JSON data."""
    return {"hardware": hardware(), "software": software(), "code": code(), "state": state()}


def hardware() -> dict[str, Any]:
    """Return processor, memory, their limits for this process, and the GPUs that nvidia-smi shows."""
    cpu = _cpuinfo()
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "machine": platform.machine(),
        "cpu_model": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": digest(sorted((cpu.get("flags") or cpu.get("Features") or "").split()))[:16],
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(),
        "affinity": affinity,
        "cpu_quota": _line(CGROUP / "cpu.max"),
        "memory_limit": _line(CGROUP / "memory.max"),
        "governor": _line(CPUS / "cpu0" / "cpufreq" / "scaling_governor"),
        "ram_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": _nvidia_smi(GPU_FIELDS),
    }


def software() -> dict[str, Any]:
    """Return operating system, Python, libraries and the variables that set threads and instruction sets."""
    return {
        "system": platform.system(),
        "distribution": _distribution(),
        "kernel": platform.release(),
        "libc": "-".join(platform.libc_ver()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {"squeeze": squeeze.__version__, **_versions()},
        "variables": {key: value for key, value in sorted(os.environ.items()) if key.startswith(VARIABLE_PREFIXES)},
        "preloaded": [Path(path).name for path in os.environ.get("LD_PRELOAD", "").replace(":", " ").split()],
    }


def code() -> dict[str, Any]:
    """Return the commit of the checkout that runs, and whether its code differs from it; None outside a checkout."""
    root = Path(squeeze.__file__).parents[1]
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    git = ("git", "--no-optional-locks", "-C", str(root))  # killed while it held one, it would lock the user out
    commit = _output(*git, "rev-parse", "HEAD")
    changes = _output(*git, "status", "--porcelain", "--", *CODE_FOLDERS)
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def state() -> dict[str, Any]:
    """Return load averages (1, 5, 15 minutes), available memory, throttling, the GPUs' clocks and temperatures, now."""
    return {
        "load": [round(value, 2) for value in psutil.getloadavg()],
        "throttled": _throttled(),
        "available_gib": round(psutil.virtual_memory().available / 2**30, 1),
        "gpus": _nvidia_smi(GPU_STATE_FIELDS),
    }


def fingerprint(environment: Mapping[str, Any], runtime: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of all that a timing depends on besides the cell's request itself.

    Of the libraries, those in MEASURING count, and only they: a board's rows share a fingerprint whatever technique
    made them; and those of an engine's own environment, where ``environment`` has an ``engine``. runtime: the cell's; a
    GPU does not matter to what runs on the CPU.
    """
    on_gpu = str(runtime.get("device", "cpu")).startswith("cuda")
    fields = {
        name: value for name, value in _fingerprinted(environment) if on_gpu or not name.startswith("hardware.gpus")
    }
    named = {name: value for name, value in runtime.items() if name != "name"}
    offered = plugins.versions(runtime)  # a plugin's runtime is one with its version; squeeze's own is in the fields
    return digest({"environment": fields, "runtime": named} | ({"plugins": offered} if offered else {}))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Name the fingerprinted fields in which two environments differ, such as `software.versions.torch`."""
    left, right = dict(_fingerprinted(one)), dict(_fingerprinted(other))
    absent = object()
    return sorted(name for name in left.keys() | right.keys() if left.get(name, absent) != right.get(name, absent))


def _fingerprinted(environment: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for part in ("hardware", "software"):
        for name, value in _flattened(part, environment[part]):
            if not name.startswith(VERSIONS) or name.removeprefix(VERSIONS) in MEASURING:
                yield name, value
    yield from _flattened(ENGINE, environment.get(ENGINE, {}))


def _flattened(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flattened(f"{name}.{key}", item)
    else:
        yield name, value


def _versions() -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries in /proc/cpuinfo; empty where there is none."""
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _throttled() -> dict[str, int | None]:
    """Count how often, so far, the cores were slowed down for heat, and this control group halted for its quota."""
    heat = [_line(path) for path in CPUS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    quota = dict(line.split() for line in (_line(CGROUP / "cpu.stat") or "").splitlines())
    return {
        "heat": sum(map(int, filter(None, heat))) if heat else None,
        "quota": int(quota["nr_throttled"]) if "nr_throttled" in quota else None,
    }


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _nvidia_smi(names: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the named fields of each GPU; an empty list where there is no NVIDIA driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    text = _output("nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits")
    lines = (text or "").splitlines()
    return [dict(zip(names, (value.strip() for value in line.split(",")), strict=True)) for line in lines]


def _line(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _output(*command: str) -> str | None:
    """Return a command's output, or None when it is not there, fails or takes more than 10 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def default_device() -> str:
    """Return ``cuda`` when a GPU seems usable, else ``cpu``.

    Seems: an NVIDIA driver is loaded, no empty CUDA_VISIBLE_DEVICES hides its GPUs, and the installed torch is not a
    CPU-only build. Whether torch can really use the GPU shows only when a measuring process starts.
    """
    driver = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return "cuda" if driver and not hidden and not _torch_is_cpu_only() else "cpu"


def usable_threads() -> int:
    """Return how many CPUs this process may run on (its affinity; all of them where a system knows no affinity)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _torch_is_cpu_only() -> bool:
    try:
        return metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return True
