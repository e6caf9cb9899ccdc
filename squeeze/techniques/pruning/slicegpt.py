"""Slice the hidden states: keep their principal directions, others between any attention and MLP (SliceGPT).

Ashkboos, Croci, do Nascimento, Hoefler, Hensman 2024, "SliceGPT: Compress Large Language Models by Deleting Rows and
Columns" (arXiv:2401.15024), section 3. What is exact, and the form of the model: ``layers.sliced``. At each place the
basis holds the first eigenvectors of

    C = sum over tokens of x x^T,    x what the norm there makes of the states, without its scale (section 3.3),

the states having come through predecessors that are sliced already. The embeddings of tokens and positions are sliced,
and so is the head; one that was tied to the embeddings reads another frame, and becomes a matrix of its own.

Of the authors' code two things differ from this: it takes C of what the norms read, where a few tokens of large states
outweigh all others; and it leaves the head as wide as it was, unless asked otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers import sliced
from squeeze.layers.contract import count_parameters
from squeeze.models import architecture, own_sizes
from squeeze.models.block_calls import before_first_block, block_calls
from squeeze.models.layout import shares, sizes
from squeeze.models.subject import OF_CODES, Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.hessian import principal_directions

TOKENS = 2048  # that go through a block at once
MULTIPLE = 8  # of dimensions: kernels like such widths


@dataclass(frozen=True)
class SliceGPT:
    """Keep a share of the hidden dimensions at each place; nothing is trained.

    hidden_kept: that share, above 0, at most 1; of the dimensions that it leaves the nearest multiple of 8 is kept.

    Beside narrower matrices there are new ones on the residual path, of the kept dimensions squared: two a block, or
    one where attention and MLP run side by side. A small model with a tied head may so have more parameters than it
    had: count them.
    """

    hidden_kept: float

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the sliced subject.

        Raises Unsupported for another share and as ``sliced.check`` does, SqueezeError where there are no tokens.
        """
        model, token_ids = subject.model, calibration.token_ids
        if not 0 < self.hidden_kept <= 1:
            raise Unsupported(f"slicegpt cannot keep a share of {self.hidden_kept}; expected more than 0, at most 1")
        sliced.check(model)
        if token_ids.numel() == 0:
            raise SqueezeError("slicegpt needs text, found no tokens; name a calibration with a corpus")
        before = sizes(model)
        parameters = subject.claims.get("parameters", count_parameters(model))
        slice_model(model, token_ids, kept(before.hidden, self.hidden_kept))
        left = shares(before, sizes(model), subject.claims)
        return subject.without(*OF_CODES, "sparsity").claiming(parameters=parameters, **left, **own_sizes.claims(model))


def kept(hidden: int, share: float) -> int:
    """Return how many dimensions stay: the multiple of 8 nearest to the share, at least 8; of a share of 1 all."""
    return hidden if share == 1 else min(hidden, max(1, round(share * hidden / MULTIPLE)) * MULTIPLE)


@torch.no_grad()
def slice_model(model: nn.Module, token_ids: Tensor, width: int) -> None:
    """Slice a model's hidden states to so many dimensions, in place. token_ids: (samples, window) int64.

    All windows' states are held once, in the model's dtype, and go through each stage of each block once.
    """
    token_ids = token_ids.to(next(model.parameters()).device)
    batch = max(TOKENS // token_ids.shape[1], 1)
    centred = isinstance(architecture.final_norm(model), nn.LayerNorm)
    path, calls = sliced.stages(model), block_calls(model, token_ids[:1])
    states = before_first_block(model, token_ids, batch)  # (samples, window, hidden)
    basis = directions(states, width, centred=centred)
    sliced.begin(model, basis)
    for name, block in architecture.named_blocks(model):
        call = sliced.named_call(block, calls[name])
        sliced.enter(block, path)
        for number, stage in enumerate(path):
            sliced.open_stage(block, stage, basis)
            for rows in torch.split(states, batch):  # in their own place: what an open stage writes is as wide
                rows.copy_(sliced.run_stage(block, stage, number, call, project(basis, rows)))
            after = directions(states, width, centred=centred)
            sliced.close_stage(block, stage, basis, after)
            basis = after
    sliced.end(model, basis)


def directions(states: Tensor, width: int, *, centred: bool) -> Tensor:
    """Return the directions that hold most of normed states: (hidden, width) float32, orthonormal columns.

    states: (samples, window, hidden). centred: whether the norm takes the mean off, as LayerNorm does. The columns are
    then without a mean, too; where all dimensions are kept, one of them comes to nothing by that, as it should.
    """
    # Of a LayerNorm's, the mean's direction comes after all others, those that no token shows among them: it is then
    # in no column but the last of all.
    moment = torch.full((states.shape[-1],) * 2, -1.0 if centred else 0.0, dtype=torch.float64, device=states.device)
    for rows in torch.split(states.flatten(0, -2), TOKENS):
        wide = rows.float()
        unit = F.normalize(wide - wide.mean(dim=-1, keepdim=True) if centred else wide, dim=-1)
        moment += unit.T @ unit
    basis = principal_directions(moment, width)
    return basis - basis.mean(dim=0) if centred else basis


def project(basis: Tensor, states: Tensor) -> Tensor:
    """Return states, (..., hidden), in the frame of ``basis``: (..., width), in their own dtype."""
    return (states.float() @ basis).to(states.dtype)
