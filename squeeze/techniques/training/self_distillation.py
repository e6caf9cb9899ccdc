"""Let the deepest block of a model teach exits at shallower ones, and keep the model up to one of these exits.

Zhang et al. 2019, "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation"
(arXiv:1905.08094). One training gives the teacher and its students. An exit of a language model is a final norm and
the head, as in Elhoushi et al. 2024 (LayerSkip, arXiv:2404.16710), where all exits share the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from squeeze.core.errors import Unsupported
from squeeze.layers import scopes
from squeeze.layers.contract import count_parameters
from squeeze.layers.master_weights import same_tensors
from squeeze.layers.scopes import Held, held
from squeeze.models import architecture
from squeeze.models.logits import logits_of
from squeeze.models.subject import Subject
from squeeze.models.surgery import keep_blocks
from squeeze.techniques.contract import Calibration
from squeeze.techniques.losses import Objective, distilled_from
from squeeze.techniques.training_loop import Plan, train

LABEL = Objective(alpha=0.0)  # cross-entropy alone


@dataclass(frozen=True)
class SelfDistillation:
    """Train the model and a norm for each exit; keep the blocks up to one exit, and its norm.

    What is left is a plain model of fewer blocks. The paper puts layers of its own between a shallow block and its
    exit, for its blocks differ in width; those of a transformer do not, so a norm is enough and costs nothing.

    layers_kept: share of the blocks that lie before the exit that is kept, rounded to whole blocks. sections: of about
    as many blocks each, that the model is parted into: an exit ends each, and the last one's is the teacher.
    alpha: weight of the divergence from the deepest exit, against the cross-entropy. temperature: of that divergence.
    hint: weight of the squared distance from the deepest exit's hidden states (lambda in the paper), as a share of
    these states' own square, so that it means the same whatever their scale.
    training_steps: of AdamW. windows: of calibration text in each. learning_rate: its highest.
    scope: what is trained: "linear", the linear layers of the blocks, or "all", embeddings, norms and head, too.
    """

    layers_kept: float
    training_steps: int
    windows: int
    learning_rate: float
    sections: int = 4
    alpha: float = 0.5
    temperature: float = 1.0
    hint: float = 0.03
    scope: Literal["linear", "all"] = "all"

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the shallow subject.

        Raises Unsupported for values of fields that mean nothing, for a model without a head, without a norm before it
        or with packed layers, for an exit that it has not, and as ``surgery.keep_blocks`` does.
        """
        objective = Objective("forward", self.temperature, self.alpha)
        plan = Plan(self.training_steps, self.windows, self.learning_rate)
        model = subject.model
        count = self._check(model)
        kept = self._kept(count)
        keep_blocks(same_tensors(model), range(kept))  # refuses before anything is trained
        exits = Exits.of(model, sorted(depths(count, self.sections) | {kept}))
        with held(model, self.scope) as base:
            parameters = [*base.parameters, *exits.parameters]
            steps = train(
                parameters,
                partial(self._loss, base, exits, objective),
                calibration.token_ids,
                plan,
                title="self-distillation",
                workplace=calibration.workplace,
                held_out=calibration.held_out,
            )
            exits.keep(kept)
        before = subject.claims.get("parameters", count_parameters(model))
        keep_blocks(model, range(kept))
        return subject.claiming(
            layers_kept=subject.claims.get("layers_kept", 1.0) * kept / count,
            parameters=before,
            training_tokens=steps * self.windows * calibration.token_ids.shape[1],
            trainable_parameters=sum(parameter.numel() for parameter in parameters),
        )

    def _check(self, model: nn.Module) -> int:
        """Return how many blocks the model has. Raises Unsupported for what cannot be done; see ``apply``."""
        if self.sections < 1:
            raise Unsupported(f"self_distillation: sections is {self.sections}, expected 1 or more")
        if not self.hint >= 0:
            raise Unsupported(f"self_distillation: hint is {self.hint:g}, expected a number of 0 or more")
        architecture.head(model)
        architecture.final_norm(model)
        scopes.check("self_distillation", self.scope, model)
        logits_of(model)
        return len(architecture.blocks(model))

    def _kept(self, count: int) -> int:
        kept = round(self.layers_kept * count)
        if not 0 < kept < count:
            raise Unsupported(
                f"self_distillation: layers_kept is {self.layers_kept:g}, {kept} of {count} blocks; expected an exit"
                f" after 1 to {count - 1}"
            )
        return kept

    def _loss(self, base: Held, exits: Exits, objective: Objective, token_ids: Tensor) -> Tensor:
        """Return the sum over exits of (1 - alpha) CE + alpha KL + hint ||F - F_C||^2, of the deepest CE alone.

        token_ids: (windows, window) int64, unpadded. The deepest exit's word is taken as given: no shallow one moves it
        to be easier to follow.
        """
        model = base.model
        with base.multiplying():
            outputs = architecture.base_model(model)(input_ids=token_ids, use_cache=False, output_hidden_states=True)
            deepest: Tensor = outputs.last_hidden_state
            wanted = deepest.detach()
            total = distilled_from(model, model, deepest, wanted, token_ids, LABEL)
            for depth in exits.norms:
                hidden = exits.read(depth, outputs.hidden_states[depth])
                total = total + distilled_from(model, model, hidden, wanted, token_ids, objective)
                total = total + self.hint * _distance(hidden, wanted)
        return total


@dataclass(frozen=True)
class Exits:
    """Hold a model's exits: at each the head reads what the final norm makes of a block's outputs, by its own values.

    final: the final norm. norms: by the number of blocks before an exit, its own values of that norm's parameters by
    their names there, float32. dtype: that the model is kept in.
    """

    final: nn.Module
    norms: Mapping[int, Mapping[str, nn.Parameter]]
    dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module, places: Iterable[int]) -> Exits:
        """Return exits after so many blocks each, which begin as the final norm, of a model in its own dtype."""
        final = architecture.final_norm(model)
        return cls(final, {depth: _values(final) for depth in places}, architecture.dtype(model))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return the values of all exits."""
        return [parameter for norm in self.norms.values() for parameter in norm.values()]

    def read(self, depth: int, hidden: Tensor) -> Tensor:
        """Return what the head reads at an exit, (windows, window, hidden), of its block's outputs of that shape.

        The norm's values are rounded as they are when they are kept, whatever the dtype of the states that they scale.
        """
        values = {name: parameter.to(self.dtype).to(hidden.dtype) for name, parameter in self.norms[depth].items()}
        outputs: Tensor = functional_call(self.final, values, (hidden,))
        return outputs

    def keep(self, depth: int) -> None:
        """Give the final norm the values of an exit."""
        for name, parameter in self.norms[depth].items():
            self.final.get_parameter(name).data.copy_(parameter.detach())


def depths(count: int, sections: int) -> set[int]:
    """Return after how many of ``count`` blocks the sections but the last end, each at least one block."""
    return {round(count * number / sections) for number in range(1, sections)} - {0, count}


def _values(norm: nn.Module) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(parameter.data.float().clone()) for name, parameter in norm.named_parameters()}


def _distance(hidden: Tensor, wanted: Tensor) -> Tensor:
    wanted = wanted.float()
    return (hidden.float() - wanted).square().mean() / wanted.square().mean()
