"""Train all of a model, embeddings, norms and head included, on float32 parameters.

Where only linear layers are trained, ``master_weights`` does the same for these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def in_float32(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Hold all parameters of a model in float32 within the body; yield them, tied ones once.

    Afterwards each is in its own dtype again, rounded. Buffers, such as rotary frequencies, stay as they are. An
    exception leaves the parameters in float32: nobody saves a training that failed.
    """
    parameters = list(model.parameters())
    dtypes = [parameter.dtype for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.float32)
    yield parameters
    for parameter, dtype in zip(parameters, dtypes, strict=True):
        parameter.data = parameter.data.to(dtype)
