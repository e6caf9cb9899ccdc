import os

import pytest

from squeeze.core import environment


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose NVIDIA driver is loaded, with a torch that was built for CUDA."""
    monkeypatch.setattr(environment.Path, "exists", lambda path: str(path) == "/proc/driver/nvidia/version")
    monkeypatch.setattr(environment.metadata, "version", lambda _: "2.13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_is_chosen_when_driver_torch_and_environment_agree(gpu):
    assert environment.default_device() == "cuda"


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_gpu_is_not_chosen(gpu, monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert environment.default_device() == "cpu"


def test_a_torch_without_cuda_means_cpu(gpu, monkeypatch):
    monkeypatch.setattr(environment.metadata, "version", lambda _: "2.13.0+cpu")
    assert environment.default_device() == "cpu"


def test_no_driver_means_cpu(gpu, monkeypatch):
    monkeypatch.setattr(environment.Path, "exists", lambda _: False)
    assert environment.default_device() == "cpu"


def test_threads_are_those_that_this_process_may_use():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert environment.usable_threads() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert environment.usable_threads() == len(before)
