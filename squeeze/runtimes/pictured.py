"""Put one picture in front of each prompt: so a model that reads pictures is timed, measured and continued.

The picture is made up and always the same: waves of colour of several lengths, no two patches alike. No pictures with
questions come with squeeze, so nobody says how well it is understood; what is told is what reading it costs, and how
far a compressed model's continuations are from the uncompressed one's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from squeeze.models import architecture
from squeeze.runtimes.generation import Forward

WAVES = ((1, 2), (3, 1), (2, 5))  # of each colour: how many there are across the picture, and down


def pictured(model: nn.Module) -> Forward:
    """Return a forward that reads a picture, and then the prompts: (rows, tokens) int64 -> the model's outputs.

    Each row begins with the token that begins a text, where the model has one, and the picture's.
    """
    device = next(model.parameters()).device
    pixels, before = picture(model).to(device), torch.tensor(prefix(model), device=device)

    def forward(input_ids: Tensor, **settings: Any) -> Any:
        rows = len(input_ids)
        read = torch.cat([before.expand(rows, -1), input_ids], dim=1)
        return model(input_ids=read, pixel_values=pixels.expand(rows, -1, -1, -1), **settings)

    return forward


def prefix(model: nn.Module) -> list[int]:
    """Return the tokens that stand before each prompt."""
    config: Any = model.config
    begin = architecture.text_config(model).bos_token_id
    return [*([] if begin is None else [int(begin)]), *[int(config.image_token_id)] * visual_tokens(model)]


def visual_tokens(model: nn.Module) -> int:
    """Return how many tokens a picture has, as the configuration says; transformers refuses another number."""
    config: Any = model.config
    return int(config.image_seq_length)


def picture(model: nn.Module) -> Tensor:
    """Return the picture, (1, 3, height, width) in the model's dtype: each colour is a wave from -1 to 1."""
    config: Any = model.config
    side: int = config.vision_config.image_size
    place = torch.arange(side) / side
    colours = [torch.sin(2 * math.pi * (across * place[None, :] + down * place[:, None])) for across, down in WAVES]
    return torch.stack(colours)[None].to(architecture.dtype(model))
