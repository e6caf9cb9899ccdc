"""llama.cpp is built for what the processor has, but for AMX; who asks imports no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from squeeze.core.interpreters import environment_with
from squeeze.runtimes import llama_cpp_build
from squeeze.runtimes.llama_cpp_build import build_flags


def flags(path: Path, monkeypatch: pytest.MonkeyPatch, has: str | None) -> set[str]:
    monkeypatch.setattr(llama_cpp_build, "PROCESSOR", path / "cpuinfo")
    if has is not None:
        (path / "cpuinfo").write_text(f"model name : some\nflags\t\t: fpu {has} end\nbugs : none\n")
    return set(build_flags()["CMAKE_ARGS"].split())


def test_it_is_built_for_what_the_processor_has_but_for_amx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = "avx512f avx512cd avx512vl avx512dq avx512bw"
    found = flags(tmp_path, monkeypatch, f"sse4_2 avx avx2 fma {wide} avx512_vnni amx_tile amx_int8")
    assert {"-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_AVX512=ON", "-DGGML_AVX512_VNNI=ON"} <= found
    assert {"-DGGML_AVX512_BF16=OFF", "-DGGML_BMI2=OFF"} <= found
    assert not [flag for flag in found if "AMX" in flag]
    found = flags(tmp_path, monkeypatch, "avx avx2 avx512f avx512cd")  # not all that ggml's code for it uses
    assert "-DGGML_AVX512=OFF" in found


def test_elsewhere_it_finds_out_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert flags(tmp_path, monkeypatch, None) == {"-DLLAVA_BUILD=OFF"}
    assert flags(tmp_path, monkeypatch, "asimd sve") == {"-DLLAVA_BUILD=OFF"}


def test_who_fingerprints_a_row_imports_no_torch() -> None:
    """Of each llama.cpp row that is listed, the build is a part of its name."""
    code = (
        "import sys; from squeeze.runtimes import environments; "
        "pins = environments.of({'_target_': 'llama_cpp.LlamaCpp'}).pins(); print(*pins, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment_with({}), check=True
    )
    assert done.stdout.split() == ["llama-cpp-python", "diskcache", "requirements", "build_flags", "False"]
