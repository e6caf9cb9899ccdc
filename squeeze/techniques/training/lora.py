"""Train a low-rank change of the linear layers, all else frozen (LoRA), through peft.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685), eq. 3:

    h = W x + (alpha / r) B A x,    B zero at first.

On a base that bitsandbytes holds in nf4 it is QLoRA (Dettmers et al. 2023, arXiv:2305.14314, eq. 5): gradients pass
through the widened base into A and B.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import is_compressed, matrices
from squeeze.layers.lora import LoraLinear, features, matrix_of
from squeeze.layers.trainable import gradients_pass, is_packed
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.losses import Objective, distilled, next_token
from squeeze.techniques.training_loop import Loss, Plan, train

NAME = "default"  # of the adapter, in peft's modules
ATTENTION = re.compile(r"attn|attention")
STARTS = ("kaiming", "pissa", "loftq")
TARGETS = ("linear", "attention", "peft")
LOSSES = ("next_token", "distilled")


@dataclass(frozen=True)
class LoRA:
    """Train adapters of peft on float layers, or on 4-bit ones of bitsandbytes.

    rank: r. lora_alpha: alpha. rslora: whether B A is multiplied by alpha / sqrt(r) (arXiv:2312.03732). dora: whether
    the lengths of output rows are learned apart (arXiv:2402.09353).
    start: of A and B. "kaiming": A random, B zero. "pissa": the largest r singular triples of W, which leave W (Meng et
        al. 2024, arXiv:2404.02948, eq. 2 to 4). "loftq": those of what rounding took from W, on a 4-bit base (Li et al.
        2023, arXiv:2310.08659, algorithm 1 with T = 1; peft's own needs a GPU).
    targets: "linear", all linear layers of the blocks; "attention", its own; or those that peft names for the
        architecture ("peft"), mostly queries and values, as the paper has it.
    loss: "next_token" of the text, or "distilled" from the uncompressed model.
    merge: whether B A is added to W at the end, which leaves a plain model; otherwise the artifact keeps the adapter
        beside the base, in the model's dtype.
    training_steps: of AdamW. windows: of calibration text in each. learning_rate: its highest.
    """

    rank: int
    lora_alpha: int
    rslora: bool
    dora: bool
    start: Literal["kaiming", "pissa", "loftq"]
    targets: Literal["linear", "attention", "peft"]
    loss: Literal["next_token", "distilled"]
    merge: bool
    training_steps: int
    windows: int
    learning_rate: float

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the adapted subject.

        Raises Unsupported for a model without a head, for layers that peft cannot adapt here, for what does not go
        together (see ``check``), for a loftq start where some of the layers have gone, and for a plan that cannot be.
        """
        model, plan = subject.model, Plan(self.training_steps, self.windows, self.learning_rate)
        architecture.head(model)
        self.check(model)
        teacher = calibration.baseline() if self.start == "loftq" or self.loss == "distilled" else model
        if self.start == "loftq":
            self.check_same_layers(model, teacher)
        adapted = self.adapted(model, calibration.seed)
        trainable, everything = adapted.get_nb_trainable_parameters()
        with gradients_pass(model):
            if self.dora:
                measure_rows(model)
            if self.start == "loftq":
                start_from_residual(model, teacher)
            steps = train(
                [parameter for parameter in model.parameters() if parameter.requires_grad],
                partial(next_token, model) if self.loss == "next_token" else _distillation(model, teacher),
                calibration.token_ids,
                plan,
                title=f"lora of rank {self.rank}",
                workplace=calibration.workplace,
                held_out=calibration.held_out,
            )
        if self.merge:
            adapted.merge_and_unload()
        else:
            keep_beside(model)
        model.eval().requires_grad_(False)
        return subject.claiming(
            training_tokens=steps * self.windows * calibration.token_ids.shape[1],
            trainable_parameters=trainable,
            trainable_share=round(trainable / everything, 6),
        )

    def check(self, model: nn.Module) -> None:
        """Refuse, before any work, what cannot be done.

        Raises Unsupported for other starts, targets and losses than there are; a base that peft does not adapt (layers
        packed by squeeze, int8 of bitsandbytes), or not from this start; a merge into 4 bits; a rank beyond a layer's.
        """
        _check_known("start", self.start, STARTS)
        _check_known("targets", self.targets, TARGETS)
        _check_known("loss", self.loss, LOSSES)
        layers = self._targeted(model)
        for name, layer in layers.items():
            if is_compressed(layer) or (is_packed(layer) and type(layer).__name__ != "Linear4bit"):
                raise Unsupported(
                    f"{name} is a {type(layer).__name__}, but peft adapts float layers and 4-bit ones of bitsandbytes "
                    "here; recover.Recover with how: lora adapts what squeeze has packed"
                )
            if self.rank > (most := min(features(layer))):
                raise Unsupported(f"rank is {self.rank}, but {name} has one of {most} at the most; lower rank")
        floats = not any(map(is_packed, layers.values()))
        if floats and self.start == "loftq":
            raise Unsupported("start: loftq begins with what rounding took; expected bitsandbytes nf4 before it")
        if not floats and (self.start == "pissa" or self.merge):
            asked = "merge: true" if self.merge else "start: pissa"
            raise Unsupported(f"{asked} changes a base of floats, and this one is packed; keep its adapter beside it")
        if self.dora and self.start == "loftq":
            raise Unsupported("dora takes the lengths of rows from the base, loftq changes them; use start: kaiming")

    def check_same_layers(self, model: nn.Module, teacher: nn.Module) -> None:
        """Raise Unsupported unless the adapted layers are the teacher's but for rounding, from which loftq starts."""
        here, there = (len(architecture.blocks(each)) for each in (model, teacher))
        if here != there:
            raise Unsupported(
                f"start: loftq wants the {there} blocks of the uncompressed model, found {here}; use start: kaiming"
            )
        for name, layer in self._targeted(model).items():
            found, expected = features(layer), features(teacher.get_submodule(name))
            if found != expected:
                raise Unsupported(
                    f"start: loftq wants the layers of the uncompressed model, but {name} is {found[0]} x {found[1]}"
                    f" here and {expected[0]} x {expected[1]} there; use start: kaiming"
                )

    def adapted(self, model: nn.Module, seed: int) -> Any:
        """Return peft's model around this one, whose layers it has wrapped; torch's generator is left as it was."""
        from peft import LoraConfig, get_peft_model

        layers = self._targeted(model)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.lora_alpha,
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights="pissa" if self.start == "pissa" else True,
            target_modules=sorted(layers),
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return get_peft_model(model, config)

    def _targeted(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the layers that are adapted, by full name. Raises Unsupported where there are none."""
        layers = dict(matrices(model))
        if self.targets == "attention":
            layers = {name: layer for name, layer in layers.items() if ATTENTION.search(name)}
        elif self.targets == "peft":
            from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

            kind: str = model.config.model_type  # type: ignore[union-attr,assignment]
            endings = tuple(f".{ending}" for ending in KNOWN.get(kind, ()))
            layers = {name: layer for name, layer in layers.items() if name.endswith(endings)}
        if not layers:
            raise Unsupported(f"targets {self.targets} names no layer of {type(model).__name__}; use targets: linear")
        if len({id(layer) for layer in layers.values()}) < len(layers):
            raise Unsupported("blocks share layers, of which peft adapts one place alone; use recover with how: lora")
        return layers


def keep_beside(model: nn.Module) -> None:
    """Put layers of squeeze in the places of peft's, over the same bases; A and B in the model's dtype."""
    dtype = architecture.dtype(model)
    for name, layer in _wrapped(model).items():
        lengths = layer.lora_magnitude_vector[NAME].weight.detach() if layer.lora_magnitude_vector else None
        beside = LoraLinear.of(
            layer.get_base_layer(),
            layer.lora_A[NAME].weight.detach().to(dtype),
            layer.lora_B[NAME].weight.detach().to(dtype),
            lengths,
            alpha=layer.lora_alpha[NAME],
            rslora=layer.use_rslora[NAME],
            dtype=dtype,
        )
        architecture.put(model, name, beside)
    del model.peft_config  # which peft has left on it


@torch.no_grad()
def measure_rows(model: nn.Module) -> None:
    """Let DoRA's lengths be those of the rows of W + s B A, so that it starts from just that matrix.

    peft measures them in the base's dtype: in bfloat16 a row would begin up to 0.4 % too long or too short.
    """
    dtype = architecture.dtype(model)
    for layer in _wrapped(model).values():
        change = layer.scaling[NAME] * (layer.lora_B[NAME].weight @ layer.lora_A[NAME].weight)
        weight = matrix_of(layer.get_base_layer(), dtype).float() + change
        layer.lora_magnitude_vector[NAME].weight.copy_(torch.linalg.norm(weight, dim=1))


@torch.no_grad()
def start_from_residual(model: nn.Module, teacher: nn.Module) -> None:
    """Let s B A be the best approximation of rank r of W - Q (LoftQ): W the teacher's weight, Q the packed base."""
    dtype = architecture.dtype(model)
    for name, layer in _wrapped(model).items():
        weight = architecture.weight(teacher.get_submodule(name)).float()
        left, values, right = torch.linalg.svd(weight - matrix_of(layer.get_base_layer(), dtype), full_matrices=False)
        rank, roots = layer.r[NAME], values[: layer.r[NAME]].sqrt()
        layer.lora_A[NAME].weight.copy_(roots[:, None] * right[:rank])
        layer.lora_B[NAME].weight.copy_(left[:, :rank] * roots / layer.scaling[NAME])


def _distillation(model: nn.Module, teacher: nn.Module) -> Loss:
    return lambda token_ids: distilled(model, teacher, token_ids, Objective())


def _wrapped(model: nn.Module) -> dict[str, Any]:
    """Return peft's layers by full name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _check_known(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise Unsupported(f"lora has no {field} {value!r}; expected {', '.join(known)}")
