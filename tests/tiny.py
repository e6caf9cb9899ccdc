"""Tiny random models of every architecture shape, for tests."""

from __future__ import annotations

from torch import nn

from squeeze.models.load import load_baseline
from squeeze.models.subject import Subject

CAUSAL = ("llama", "gpt2", "opt", "gpt_neox")
ARCHITECTURES = (*CAUSAL, "bert")
KINDS = {"bert": "encoder", "bert_classifier": "classifier", "llava": "vision_language"}  # of others: causal_lm


def tiny_subject(name: str, dtype: str = "float32", seed: int = 0) -> Subject:
    """A random model of few layers with its byte-level tokenizer; ``NAME_classifier`` has two classes."""
    architecture = name.removesuffix("_classifier")
    kind = "classifier" if name != architecture else KINDS.get(name, "causal_lm")
    return load_baseline({"source": f"random:{architecture}", "seed": seed, "kind": kind, "dtype": dtype})


def tiny_model(name: str, dtype: str = "float32", seed: int = 0) -> nn.Module:
    """The model alone."""
    return tiny_subject(name, dtype, seed).model
