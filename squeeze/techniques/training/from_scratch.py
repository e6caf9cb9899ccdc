"""Begin a student from random weights, of the teacher's architecture and vocabulary in other sizes.

What distilling gives such a student is all that it has: beside one that took over weights it shows what these are worth
(Turc, Chang, Lee, Toutanova 2019, "Well-Read Students Learn Better", arXiv:1908.08962, compares such beginnings).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models import architecture
from squeeze.models.layout import layout, shares, sizes
from squeeze.models.subject import Subject
from squeeze.models.surgery import describe_blocks
from squeeze.techniques.contract import Calibration


@dataclass(frozen=True)
class FromScratch:
    """Put a new model in the teacher's place, initialised as transformers initialises its architecture.

    layers: blocks. hidden: size of the hidden states. channels: of each MLP. heads: of queries in each block, each of
    hidden / heads channels; kv_heads: of keys and values, where the architecture knows such. None: the teacher's.
    embeddings: whether the table of token embeddings, and a head that is not tied to it, are the teacher's: where the
    hidden size is.
    """

    layers: int | None = None
    hidden: int | None = None
    channels: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    embeddings: bool = False

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the subject with the new model, its weights drawn from the calibration's seed alone.

        What was claimed of the model before is true of the new one no more, but for how much smaller it is.

        Raises Unsupported for sizes that no model of this architecture has, and for an architecture that is not known.
        """
        teacher = subject.model
        config = self._configuration(teacher)
        parameters = subject.claims.get("parameters", count_parameters(teacher))
        dtype, device = architecture.dtype(teacher), next(teacher.parameters()).device
        kind: Any = type(teacher)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(calibration.seed)
            student = kind._from_config(config, dtype=torch.float32)  # one draw for every dtype
        for parameter in student.parameters():
            parameter.data = parameter.data.to(dtype)
        student.config.dtype = dtype
        student = student.to(device).eval().requires_grad_(False)
        if self.embeddings:
            for own, given in zip(_tables(student), _tables(teacher), strict=True):
                own.weight.data = given.weight.data.clone()
        left = shares(sizes(teacher), sizes(student), subject.claims)
        claims = {"parameters": parameters, **left}
        return Subject(student, subject.tokenizer, claims, subject.cache, subject.draft)

    def _configuration(self, teacher: nn.Module) -> Any:
        """Return the student's configuration, checked."""
        where, before = layout(teacher), sizes(teacher)
        config: Any = copy.deepcopy(teacher.config)
        layers, hidden = self.layers or before.layers, self.hidden or before.hidden
        channels, heads = self.channels or int(before.channels), self.heads or config.num_attention_heads
        grouped = getattr(config, "num_key_value_heads", None)
        kv_heads = self.kv_heads or grouped or heads
        given = {name: getattr(self, name) for name in ("layers", "hidden", "channels", "heads", "kv_heads")}
        for name, size in given.items():
            if size is not None and size < 1:
                raise Unsupported(f"from_scratch: {name}={size}, expected 1 or more, or null for the teacher's")
        if layers > before.layers:
            raise Unsupported(f"from_scratch: {layers} layers, the teacher has {before.layers}; expected at most those")
        if hidden % heads or hidden // heads % 2:
            raise Unsupported(
                f"from_scratch: hidden={hidden} is no even multiple of heads={heads}; expected hidden / heads even"
            )
        if heads % kv_heads or (grouped is None and self.kv_heads is not None):
            known = f"a divisor of heads={heads}" if grouped is not None else f"null: {config.model_type} has none"
            raise Unsupported(f"from_scratch: kv_heads={kv_heads}, expected {known}")
        if self.embeddings:
            self._check_tables(teacher, hidden, before.hidden)
        describe_blocks(config, range(layers))
        config.hidden_size, config.num_attention_heads = hidden, heads
        setattr(config, where.channels, channels)
        if grouped is not None:
            config.num_key_value_heads = kv_heads
        if getattr(config, "head_dim", None) is not None:
            config.head_dim = hidden // heads
        if getattr(config, "word_embed_proj_dim", None) == before.hidden:
            config.word_embed_proj_dim = hidden
        return config

    def _check_tables(self, teacher: nn.Module, hidden: int, before: int) -> None:
        if hidden != before:
            raise Unsupported(
                f"from_scratch: the teacher's embeddings have {before} channels, the student's {hidden}; expected"
                " embeddings=false, or the teacher's hidden size"
            )
        for table in _tables(teacher):
            if not isinstance(table, nn.Embedding | nn.Linear):
                raise Unsupported("from_scratch: the teacher's embeddings are compressed; put this step first")


def _tables(model: nn.Module) -> list[Any]:
    """Return the table of token embeddings and, where it is another, the head's."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    apart = head is not None and getattr(head, "weight", None) is not getattr(embedding, "weight", None)
    return [embedding, head] if apart else [embedding]
