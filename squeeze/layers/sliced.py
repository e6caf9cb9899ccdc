"""Give a model narrower hidden states, in a frame of their own at each place: the form of SliceGPT's models.

Ashkboos, Croci, do Nascimento, Hoefler, Hensman 2024, "SliceGPT: Compress Large Language Models by Deleting Rows and
Columns" (arXiv:2401.15024), sections 3.1 to 3.4. At a place, which is where a norm reads the states x, (hidden,), they
are z = Q^T x instead, Q (hidden, width) the place's basis of orthonormal columns. Then

    what reads them there:   W diag(g) Q, with the bias b + W s, behind a norm that has neither scale g nor shift s
    what writes to the next: Q'^T W, Q'^T b
    what passes by:          Q'^T Q z, a matrix on the residual path

which changes nothing where the states lie in the span of each Q, since |z| = |x| then, and loses what lies outside.
LayerNorm is RMSNorm of x without its mean: there the columns of every Q have a mean of zero, so that none is written.

No configuration of transformers has a place for the matrices on the residual path. So the blocks stay what they are to
transformers, but for their forward; the configuration still says the original hidden size, of which attention takes
the size of its heads; and an artifact says the width, with which ``Sliced`` gives a fresh model this form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.models import architecture
from squeeze.models.block_calls import Call
from squeeze.models.folding import FOLDS
from squeeze.models.layout import layout
from squeeze.models.surgery import check_float, set_weight


@dataclass(frozen=True)
class Part:
    """Name, in a block, what reads the states at one place: a norm, and what runs behind it, one after the other.

    readers: the layers that read the norm's outputs. writer: the one whose outputs are added to the states.
    """

    norm: str
    modules: tuple[str, ...]
    readers: tuple[str, ...]
    writer: str
    attends: bool


Stage = tuple[Part, ...]  # of a block: parts that read the states at the same place, and write to the same

# By model_type, as a block has them: the norm and the attention, the norm and the MLP.
_LLAMA = (("input_layernorm", ("self_attn",)), ("post_attention_layernorm", ("mlp",)))
PARTS: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": (("ln_1", ("attn",)), ("ln_2", ("mlp",))),
    "opt": (("self_attn_layer_norm", ("self_attn",)), ("final_layer_norm", ("fc1", "activation_fn", "fc2"))),
    "gpt_neox": (("input_layernorm", ("attention",)), ("post_attention_layernorm", ("mlp",))),
}
# By a field of the configuration: the value with which states are read by norms alone, and written by blocks alone.
EXPECTED = {
    "do_layer_norm_before": (True, "its norms lie in the residual path"),
    "_remove_final_layer_norm": (False, "its head reads the states without a norm"),
    "add_cross_attention": (False, "its blocks attend to an encoder, too"),
}


class FrameNorm(nn.Module):
    """Divide states by their root mean square over all ``hidden`` dimensions, of which a frame has ``width``.

    weight: (width,), ones: a scale that is not the frame's own is multiplied into the readers. It is here for steps
    that balance inputs (AWQ, SmoothQuant), which move a scale into the norm. eps: added to the mean square.
    """

    def __init__(self, hidden: int, eps: float, weight: Tensor) -> None:
        super().__init__()
        self.hidden, self.eps = hidden, eps
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, states: Tensor) -> Tensor:
        """Return the normed states: (..., width) -> (..., width)."""
        wide = states.float()
        squares = wide.square().sum(dim=-1, keepdim=True) / self.hidden
        return self.weight * (wide * torch.rsqrt(squares + self.eps)).to(states.dtype)


@dataclass(frozen=True)
class Sliced:
    """Give an uncompressed model this form; a model that has it holds this as its ``form``, which artifacts store.

    width: dimensions of its hidden states.
    """

    width: int

    def shape(self, model: nn.Module) -> None:
        """Give a model the form and its sizes, in place, without data where they differ.

        Raises SqueezeError for a width that the model cannot have, Unsupported as ``check`` does.
        """
        hidden: int = model.config.hidden_size  # type: ignore[union-attr,assignment]
        if type(self.width) is not int or not 0 < self.width <= hidden:
            raise SqueezeError(f"hidden states of {self.width!r} dimensions, expected 1 to {hidden}")
        check(model)
        basis, path = torch.empty((hidden, self.width), device="meta"), stages(model)
        begin(model, basis)
        for block in architecture.blocks(model):
            enter(block, path)
            for stage in path:
                open_stage(block, stage, basis)
                close_stage(block, stage, basis, basis)
        end(model, basis)


def check(model: nn.Module) -> None:
    """Raise Unsupported where this model cannot have the form."""
    config: Any = model.config
    kind = config.model_type
    if kind not in PARTS:
        raise Unsupported(
            f"hidden states of {kind} models cannot be sliced: their norms lie in the residual path, or are not known;"
            f" those known: {', '.join(PARTS)}. Cut channels or blocks"
        )
    for name, (value, why) in EXPECTED.items():
        if getattr(config, name, value) != value:
            raise Unsupported(f"this {kind} model cannot be sliced: {why}; expected {name}={value}. Cut channels")
    if (wide := getattr(config, "word_embed_proj_dim", config.hidden_size)) != config.hidden_size:
        raise Unsupported(
            f"this {kind} model projects its embeddings of {wide} dimensions; expected tables as wide as its hidden"
            f" states, {config.hidden_size}. Cut channels"
        )
    if architecture.form(model) is not None:
        raise Unsupported("this model is sliced already; slice the uncompressed one, to fewer dimensions")
    check_float(model, [name for stage in stages(model) for part in stage for name in (*part.readers, part.writer)])
    embedding, head = model.get_input_embeddings(), architecture.head(model)  # type: ignore[operator]
    if type(embedding) is not nn.Embedding or type(head) is not nn.Linear:
        raise Unsupported("embedding or head is compressed; slice before the step that compresses them")
    known = {id(parameter) for part in (architecture.base_model(model), head) for parameter in part.parameters()}
    if any(id(parameter) not in known for parameter in model.parameters()):
        raise Unsupported(f"{type(model).__name__} reads its hidden states in a head that is not known here")


def stages(model: nn.Module) -> tuple[Stage, ...]:
    """Return the stages of each block: attention and MLP one after the other, or both at once (GPT-NeoX)."""
    config: Any = model.config
    where, kind = layout(model), config.model_type
    readers = {fold.producer: fold.consumers for fold in FOLDS[kind]}
    (attention_norm, attention), (mlp_norm, mlp) = PARTS[kind]
    attends = Part(attention_norm, attention, readers[attention_norm], where.output, attends=True)
    thinks = Part(mlp_norm, mlp, readers[mlp_norm], where.down, attends=False)
    return ((attends, thinks),) if getattr(config, "use_parallel_residual", False) else ((attends,), (thinks,))


@torch.no_grad()
def begin(model: nn.Module, basis: Tensor) -> None:
    """Let all tables of embeddings, of positions too, write states in the frame of ``basis``, (hidden, width) float32.

    Here as below, in place; a basis on the meta device makes shapes alone.
    """
    for table in architecture.base_model(model).modules():
        if isinstance(table, nn.Embedding):
            rows = table.weight.to(basis.device, torch.float32) @ basis
            table.weight = nn.Parameter(rows.to(table.weight.dtype), requires_grad=False)
            table.embedding_dim = basis.shape[1]


@torch.no_grad()
def enter(block: nn.Module, path: Sequence[Stage]) -> None:
    """Let a block run these stages; each is yet to be opened and closed."""
    block.residuals = nn.ModuleList()
    block.forward = partial(_forward, block, tuple(path), _names(block))


@torch.no_grad()
def open_stage(block: nn.Module, stage: Stage, basis: Tensor) -> None:
    """Let a block's next stage read states in the frame of ``basis``, (hidden, width) float32, and write whole ones."""
    dtype = architecture.weight(block.get_submodule(stage[0].writer)).dtype
    for part in stage:
        norm: Any = block.get_submodule(part.norm)
        for name in part.readers:
            _read(block.get_submodule(name), norm, basis)
        setattr(block, part.norm, _in_frame(norm, basis, dtype))
    residual = nn.Linear(1, 1, bias=False, device="meta")
    set_weight(residual, basis.to(dtype), None)
    block.residuals.append(residual)  # type: ignore[operator,union-attr]


@torch.no_grad()
def close_stage(block: nn.Module, stage: Stage, basis: Tensor, after: Tensor) -> None:
    """Let the stage that was opened last write states in the frame ``after``, (hidden, width) float32."""
    for part in stage:
        layer = block.get_submodule(part.writer)
        weight, bias = architecture.weight(layer), architecture.bias(layer)
        written = after.T @ weight.to(after.device, torch.float32)
        shift = None if bias is None else (after.T @ bias.to(after.device, torch.float32)).to(bias.dtype)
        set_weight(layer, written.to(weight.dtype), shift)
    residual: Any = block.residuals[-1]  # type: ignore[index]
    set_weight(residual, (after.T @ basis).to(residual.weight.dtype), None)


@torch.no_grad()
def end(model: nn.Module, basis: Tensor) -> None:
    """Let the head read states in the frame of ``basis``, (hidden, width) float32; it is tied to no table any more."""
    norm = architecture.final_norm(model)
    name = next(name for name, module in model.named_modules() if module is norm)
    head = architecture.head(model)
    _read(head, norm, basis)
    architecture.replace(model, name, _in_frame(norm, basis, architecture.weight(head).dtype))
    model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    model.form = Sliced(basis.shape[1])  # type: ignore[assignment]


def named_call(block: nn.Module, call: Call) -> dict[str, Any]:
    """Return by name all that a block is called with beside the hidden states."""
    return {**dict(zip(_names(block), call.positional, strict=False)), **call.named}


def run_stage(block: nn.Module, stage: Stage, number: int, call: Mapping[str, Any], states: Tensor) -> Tensor:
    """Return what the block's stage of this number makes of states, (..., width). call: see ``named_call``.

    Dropout between stages is left out: squeeze trains without.
    """
    parts = [_added(block, part, states, call) for part in stage]
    passed: Tensor = block.residuals[number](states)  # type: ignore[operator,index]
    return passed + sum(parts[1:], parts[0])


def _forward(
    block: nn.Module,
    path: Sequence[Stage],
    names: Sequence[str],
    hidden_states: Tensor,
    *positional: Any,
    **named: Any,
) -> Tensor:
    """Run a block: what stands in for its own forward, whose arguments have these names."""
    call = {**dict(zip(names, positional, strict=False)), **named}
    for number, stage in enumerate(path):
        hidden_states = run_stage(block, stage, number, call, hidden_states)
    return hidden_states


def _added(block: nn.Module, part: Part, states: Tensor, call: Mapping[str, Any]) -> Tensor:
    outputs: Any = getattr(block, part.norm)(states)
    for name in part.modules:
        module = getattr(block, name)
        outputs = module(outputs, **call)[0] if part.attends else module(outputs)
    return outputs  # type: ignore[no-any-return]


def _read(layer: nn.Module, norm: Any, basis: Tensor) -> None:
    """Let a layer read the norm's inputs, normed alone, in the frame of a basis: W diag(g) Q and b + W s."""
    weight, bias = architecture.weight(layer), architecture.bias(layer)
    wide, gain, shift = (
        None if part is None else part.to(basis.device, torch.float32)
        for part in (weight, norm.weight, getattr(norm, "bias", None))
    )
    assert wide is not None
    if shift is not None:
        bias = (wide @ shift + (0 if bias is None else bias.to(basis.device, torch.float32))).to(weight.dtype)
    set_weight(layer, ((wide if gain is None else wide * gain) @ basis).to(weight.dtype), bias)


def _in_frame(norm: Any, basis: Tensor, dtype: torch.dtype) -> FrameNorm:
    hidden, width = basis.shape
    eps = norm.eps if isinstance(norm, nn.LayerNorm) else norm.variance_epsilon
    return FrameNorm(hidden, eps, torch.ones(width, dtype=dtype, device=basis.device))


def _names(block: nn.Module) -> tuple[str, ...]:
    """Return how the arguments are called that a block's own forward takes after the hidden states."""
    return tuple(signature(type(block).forward).parameters)[2:]
