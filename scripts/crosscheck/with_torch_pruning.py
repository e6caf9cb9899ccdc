"""Remove neurons of the MLPs by the magnitude of their weights with torch-pruning."""

from __future__ import annotations

import torch
import torch_pruning
from torch import nn

from scripts.crosscheck.prepare import Inputs


def quantize(inputs: Inputs, neurons_kept: float) -> nn.Module:
    """Return the model without the neurons of the least group norm (l1), as many of each block.

    The library finds what belongs to a neuron by itself, out of the graph of a forward: a row of each of the two
    matrices that write it, and the column that reads it. Its score is the mean of their sums of absolute weights, in
    the weights' dtype: in bfloat16 hundreds of neurons would have the same, so they are made wider, and back.
    """
    model = inputs.model(dtype=torch.float32).requires_grad_(True)  # the graph is that of gradients
    graph = torch_pruning.DependencyGraph().build_dependency(
        model,
        example_inputs=inputs.evaluation[:1, :8],
        forward_fn=lambda own, token_ids: own(input_ids=token_ids, use_cache=False).logits,
    )
    score = torch_pruning.importance.MagnitudeImportance(p=1, group_reduction="mean", normalizer=None)
    for block in model.model.layers:
        writes, prune = block.mlp.gate_proj, torch_pruning.prune_linear_out_channels
        scores = score(graph.get_pruning_group(writes, prune, idxs=list(range(writes.out_features))))
        least = scores.argsort()[: writes.out_features - round(neurons_kept * writes.out_features)]
        graph.get_pruning_group(writes, prune, idxs=least.tolist()).prune()
    for weight in model.requires_grad_(False).parameters():  # not model.to(): buffers hold rotary angles in float32
        weight.data = weight.data.to(torch.bfloat16)
    return model
