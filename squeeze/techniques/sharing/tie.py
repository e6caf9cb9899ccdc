"""Let the head and the token embedding share one table, or give each its own.

Press, Wolf 2016, "Using the Output Embedding to Improve Language Models" (arXiv:1608.05859), section 3: one matrix
serves as both. Small models are trained so; of one that was not, tying saves a table and changes what it predicts.
Untying changes nothing but the bytes, which are more: a control, and room for a head that is compressed by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration


@dataclass(frozen=True)
class Tie:
    """Tie the head to the token embedding, or untie it; what is so already stays as it is.

    tied: whether both shall be one table. table: which one that is, the "embedding", or the "mean" of both. The
    configuration follows, so that the saved folder loads with ``from_pretrained`` alone.
    """

    tied: bool
    table: Literal["embedding", "mean"] = "embedding"

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the subject with one table, or with two.

        Raises Unsupported for another table, for a model without a head, for tables that are compressed or of other
        shapes, and for an architecture whose configuration cannot say that they are one.
        """
        if self.table not in ("embedding", "mean"):
            raise Unsupported(f"tie has no table {self.table!r}; expected 'embedding' or 'mean'")
        model: Any = subject.model
        embedding: Any = model.get_input_embeddings()
        head: Any = architecture.head(model)
        self._check(model, embedding, head)
        if self.tied == (head.weight.data_ptr() == embedding.weight.data_ptr()):
            return subject
        parameters = subject.claims.get("parameters", count_parameters(model))
        if self.tied and self.table == "mean":
            embedding.weight.data = (embedding.weight.float() + head.weight.float()).div(2).to(embedding.weight.dtype)
        elif not self.tied:
            head.weight = nn.Parameter(embedding.weight.data.clone(), requires_grad=False)
        model.config.tie_word_embeddings = self.tied
        model.tie_weights()
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
        return subject.claiming(parameters=parameters)

    def _check(self, model: Any, embedding: Any, head: Any) -> None:
        for table in (embedding, head):
            if not isinstance(table, nn.Embedding | nn.Linear):
                raise Unsupported(f"a {type(table).__name__} is no plain table; tie or untie before it is compressed")
        if embedding.weight.shape != head.weight.shape:
            found, expected = tuple(head.weight.shape), tuple(embedding.weight.shape)
            raise Unsupported(f"the head is {found}, the embedding {expected}; expected one shape")
        if self.tied and not model._tied_weights_keys:
            raise Unsupported(f"{type(model).__name__} has no configuration in which its head is the embedding")
