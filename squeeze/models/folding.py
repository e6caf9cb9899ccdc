"""Move a scale per channel from the inputs of a linear layer into whatever produces them.

A layer W reads x = f(producer). With s > 0, W diag(s) applied to diag(s)^-1 x is the same function, and where f passes
positive scales through (attention with its values, a product with a gate, ReLU) the producer's weights take the 1 / s:
the model stays what it was, but its weights are easier or harder to round (SmoothQuant, AWQ).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from squeeze.core.errors import Unsupported
from squeeze.models import architecture
from squeeze.models.layout import head_size

# (producer's outputs, channels of a head) -> those that reach the consumers, in the order of the consumers' inputs
Outputs = Callable[[int, int], torch.Tensor]


def every(outputs: int, head_size: int) -> torch.Tensor:  # noqa: ARG001 - one of several
    """Return all of the producer's outputs: they are the consumers' inputs."""
    return torch.arange(outputs)


def values(outputs: int, head_size: int) -> torch.Tensor:  # noqa: ARG001
    """Return the last third: queries, keys and values lie one after the other (GPT-2)."""
    return torch.arange(outputs)[-outputs // 3 :]


def values_by_head(outputs: int, head_size: int) -> torch.Tensor:
    """Return the last third of each head: queries, keys and values of one head lie together (GPT-NeoX)."""
    return torch.arange(outputs).view(-1, 3, head_size)[:, 2].flatten()


@dataclass(frozen=True)
class Fold:
    """Name, below a block, a norm or linear layer and the linear layers that read nothing but its outputs."""

    producer: str
    consumers: tuple[str, ...]
    outputs: Outputs = every
    head_size: int = 1

    def channels(self, block: nn.Module) -> torch.Tensor:
        """Return which outputs of the producer are the consumers' input channels: (channels,)."""
        return self.outputs(_weight(block.get_submodule(self.producer)).shape[0], self.head_size)

    def apply(self, block: nn.Module, scales: torch.Tensor) -> None:
        """Multiply the consumers' input columns by ``scales`` (channels,), divide the producer's outputs by them.

        In place; what changes is rounded to the layers' dtype.
        """
        producer, channels = block.get_submodule(self.producer), self.channels(block)
        weight, bias = _weight(producer), architecture.bias(producer)
        divisor = scales if weight.ndim == 1 else scales[:, None]
        weight[channels] = (weight[channels].float() / divisor).to(weight.dtype)
        if bias is not None:
            bias[channels] = (bias[channels].float() / scales).to(bias.dtype)
        for name in self.consumers:
            columns = architecture.weight(block.get_submodule(name))
            columns.copy_(columns.float() * scales)


_LLAMA = (
    Fold("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Fold("self_attn.v_proj", ("self_attn.o_proj",)),
    Fold("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    Fold("mlp.up_proj", ("mlp.down_proj",)),
)
# By model_type: what is exact in this architecture. Layers that read a GELU, or a tensor that others read too (the
# norms of BERT feed the residual as well), are not here.
FOLDS: Mapping[str, tuple[Fold, ...]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": (
        Fold("ln_1", ("attn.c_attn",)),
        Fold("attn.c_attn", ("attn.c_proj",), values),
        Fold("ln_2", ("mlp.c_fc",)),
    ),
    "opt": (
        Fold("self_attn_layer_norm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        Fold("self_attn.v_proj", ("self_attn.out_proj",)),
        Fold("final_layer_norm", ("fc1",)),
        Fold("fc1", ("fc2",)),
    ),
    "gpt_neox": (
        Fold("input_layernorm", ("attention.query_key_value",)),
        Fold("attention.query_key_value", ("attention.dense",), values_by_head),
        Fold("post_attention_layernorm", ("mlp.dense_h_to_4h",)),
    ),
    "bert": (Fold("attention.self.value", ("attention.output.dense",)),),
}


def folds(model: nn.Module) -> tuple[Fold, ...]:
    """Return what can be folded exactly in each block of this model.

    Raises Unsupported for an architecture that is not known here, and for layers that are no plain ones.
    """
    config: PretrainedConfig = model.config
    if config.model_type not in FOLDS:
        raise Unsupported(f"scales cannot be folded in {config.model_type} models; those known: {', '.join(FOLDS)}")
    known = (replace(fold, head_size=head_size(model)) for fold in FOLDS[config.model_type])
    block = architecture.blocks(model)[0]
    for name in {name for fold in FOLDS[config.model_type] for name in fold.consumers}:
        if not isinstance(layer := block.get_submodule(name), nn.Linear | Conv1D):
            raise Unsupported(f"{name} is a {type(layer).__name__}, into which no scales fold; put this step first")
    return tuple(fold for fold in known if _is_exact(fold, block, config))


def _is_exact(fold: Fold, block: nn.Module, config: PretrainedConfig) -> bool:
    if config.model_type == "opt" and fold.producer.endswith("norm") and not config.do_layer_norm_before:
        return False  # the norm's output is the residual too
    if config.model_type == "opt" and fold.producer == "fc1" and config.activation_function != "relu":
        return False
    consumer = architecture.weight(block.get_submodule(fold.consumers[0]))
    return len(fold.channels(block)) == consumer.shape[1]  # fewer where queries share their keys and values


def _weight(module: nn.Module) -> torch.Tensor:
    """Return the weight of a linear layer, (outputs, inputs), or of a norm, (outputs,)."""
    scale: torch.Tensor = module.weight.data  # type: ignore[assignment]
    return architecture.weight(module) if isinstance(module, nn.Linear | Conv1D) else scale
