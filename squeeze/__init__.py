"""squeeze: a reproducible benchmark suite of language-model compression."""

__version__ = "0.1.0"
