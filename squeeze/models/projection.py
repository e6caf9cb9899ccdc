"""Make the hidden states of a model narrower, by a linear projection that its weights take over (SliceGPT).

Ashkboos, Croci, do Nascimento, Hoefler, Hensman 2024, "SliceGPT: Compress Large Language Models by Deleting Rows and
Columns" (arXiv:2401.15024), sections 3.1 to 3.3. With a basis B, (hidden, narrow), of orthonormal columns, z = B^T x
stands for a state x. What writes to the states writes B^T W; what reads them reads B z. An RMSNorm between,
diag(g) x / rms(x), becomes one without a scale of its own, its g multiplied into the layers that read it (section 3.1):
rms(x) is |x| / sqrt(hidden), and where x = B z that is |z| / sqrt(hidden), while the narrow norm divides by
|z| / sqrt(narrow); the factor sqrt(hidden / narrow) goes into the same layers. So the result is exact for states that
lie in the span of B, and what is lost is what lies outside it.

Two things differ from the paper. One basis serves all blocks, where the paper has one for each, and a matrix between
them that no plain model has room for. And a head that is tied to the embeddings stays tied: the last norm's g cannot be
multiplied into it without storing the table twice, so it is taken along the new axes, diag(B^T diag(g) B), which is
exact where g is the same for all channels, or B takes whole channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from squeeze.core.errors import Unsupported
from squeeze.models import architecture
from squeeze.models.layout import head_size
from squeeze.models.surgery import check_float, set_weight

MODEL_TYPE = "llama"
READERS = {  # of the states, below a block, by the norm before them
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def check_projection(model: nn.Module, hidden: int, heads: int) -> None:
    """Raise Unsupported where this model cannot have hidden states of this size.

    heads: of queries in each block that the model is to have.
    """
    config: Any = model.config
    if config.model_type != MODEL_TYPE:
        raise Unsupported(
            f"hidden states of {config.model_type} models cannot be projected: their norms take a mean off, or lie in"
            f" the residual; expected {MODEL_TYPE}. Cut channels or blocks"
        )
    if hidden % heads:
        raise Unsupported(
            f"a hidden size of {hidden} is no multiple of {heads} heads, as transformers asks for; the next smaller one"
            f" that is: {hidden // heads * heads}"
        )
    if architecture.form(model) is not None:
        raise Unsupported("hidden states of a sliced model have no basis in common; project the uncompressed model")
    check_float(model, (*(name for names in READERS.values() for name in names), *WRITERS))
    embedding, head = _tables(model)
    if type(embedding) is not nn.Embedding or not (head is None or type(head) is nn.Linear):
        raise Unsupported("embedding or head is compressed; project before the step that compresses them")
    parts = [architecture.base_model(model), *([] if head is None else [head])]
    known = {id(parameter) for part in parts for parameter in part.parameters()}
    if any(id(parameter) not in known for parameter in model.parameters()):
        raise Unsupported(f"{type(model).__name__} reads its hidden states in a head that is not known here")


def norms(model: nn.Module) -> list[nn.Module]:
    """Return the norms that read the hidden states, in the order in which they run."""
    base: Any = architecture.base_model(model)
    return [block.get_submodule(name) for block in architecture.blocks(model) for name in READERS] + [base.norm]


@torch.no_grad()
def project_hidden(model: nn.Module, basis: Tensor) -> None:
    """Project a model's hidden states onto a basis, (hidden, narrow) float32 of orthonormal columns, in place.

    The configuration follows. Raises Unsupported as ``check_projection`` does.
    """
    config: Any = model.config
    basis = basis.to(next(model.parameters()).device)
    hidden, narrow = basis.shape
    check_projection(model, narrow, config.num_attention_heads)
    scale = (hidden / narrow) ** 0.5
    base: Any = architecture.base_model(model)
    embedding, head = _tables(model)
    tied = head is not None and head.weight.data_ptr() == embedding.weight.data_ptr()
    _project_table(embedding, basis)
    for block in architecture.blocks(model):
        for norm_name, readers in READERS.items():
            norm: Any = block.get_submodule(norm_name)
            for name in readers:
                _project_reader(block.get_submodule(name), norm.weight, basis, scale)
            _reset(norm, torch.ones(narrow), scale)
        for name in WRITERS:
            _project_writer(block.get_submodule(name), basis)
        for module in block.modules():
            if getattr(module, "hidden_size", None) == hidden:
                module.hidden_size = narrow  # type: ignore[assignment]
    if tied:
        along = (basis.square() * base.norm.weight.float()[:, None]).sum(dim=0)  # the diagonal of B^T diag(g) B
        _reset(base.norm, along * scale, scale)
        head.weight, head.in_features = embedding.weight, narrow
    else:
        if head is not None:
            _project_reader(head, base.norm.weight, basis, scale)
        _reset(base.norm, torch.ones(narrow), scale)
    config.head_dim = head_size(model)  # of the heads that are left the configuration may say another number
    config.hidden_size = narrow
    config.rms_norm_eps *= scale**2


def _project_table(embedding: Any, basis: Tensor) -> None:
    rows = (embedding.weight.float() @ basis).to(embedding.weight.dtype)
    embedding.weight, embedding.embedding_dim = nn.Parameter(rows, requires_grad=False), basis.shape[1]


def _project_reader(layer: nn.Module, gain: Tensor, basis: Tensor, scale: float) -> None:
    """Let a layer read projected states that no gain has scaled: W diag(g) B sqrt(hidden / narrow)."""
    weight = architecture.weight(layer)
    set_weight(layer, ((weight.float() * gain.float()) @ basis * scale).to(weight.dtype), architecture.bias(layer))


def _project_writer(layer: nn.Module, basis: Tensor) -> None:
    """Let a layer write projected states: B^T W and B^T b."""
    weight, bias = architecture.weight(layer), architecture.bias(layer)
    projected = None if bias is None else (basis.T @ bias.float()).to(bias.dtype)
    set_weight(layer, (basis.T @ weight.float()).to(weight.dtype), projected)


def _reset(norm: Any, gain: Tensor, scale: float) -> None:
    """Give a norm this gain, (narrow,). Its epsilon stays what it was, beside squares that are as much larger."""
    norm.weight = nn.Parameter(gain.to(norm.weight), requires_grad=False)
    norm.variance_epsilon *= scale**2


def _tables(model: nn.Module) -> tuple[Any, Any]:
    """Return the table of embeddings, and the head or None."""
    return model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
