"""A process knows its own age, a forked one too, and is set up as its job says."""

import subprocess
import sys

import torch

from squeeze.core.process import settle

OLD_PARENT_YOUNG_CHILD = """
import os, time
from squeeze.core.process import age
time.sleep(1.0)
parent = age()
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, str(age()).encode())
    os._exit(0)
os.wait()
print(parent, os.read(reader, 100).decode())
"""


def test_age_counts_from_the_start_or_the_fork() -> None:
    done = subprocess.run([sys.executable, "-c", OLD_PARENT_YOUNG_CHILD], capture_output=True, text=True, check=True)
    parent, child = map(float, done.stdout.split())
    assert 1.0 <= parent < 60.0
    assert 0.0 <= child < parent - 0.9


def test_threads_and_seed_are_set() -> None:
    before = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            settle({"threads": 1}, seed=7)
            assert torch.get_num_threads() == 1
            one = torch.rand(3)
            settle({"threads": 2}, seed=7)
            assert torch.get_num_threads() == 2
            assert torch.equal(torch.rand(3), one)
    finally:
        torch.set_num_threads(before)
