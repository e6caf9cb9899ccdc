"""Benchmark the compression of language models, reproducibly: the suite squeeze."""

__version__ = "0.1.0"
