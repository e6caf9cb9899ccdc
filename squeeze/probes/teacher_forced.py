"""Read what was generated through the forward that is scored: whoever decodes with another model says other tokens.

Greedy decoding chose the likeliest token. So must the scored forward, given the same tokens before it, but for
rounding, which may turn the order of two that are nearly as likely. Layers that are left out for inputs of one token,
behind prompts of a certain length, or once the warm-up is over, choose tokens that the whole model would not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from squeeze.layers.thresholded import Thresholded
from squeeze.probes import scorer
from squeeze.probes.scoring import SOFTMAX_ROWS, Row
from squeeze.runtimes.contract import Engine, States, shows_model


@torch.inference_mode()
def gaps(engine: Engine, prompt: Tensor, chosen: Sequence[int], states: States | None = None) -> list[float]:
    """Return how far below the likeliest token each chosen one lies where text is scored; 0 where it is the likeliest.

    prompt: (tokens,) int64; chosen: the tokens that were decoded behind it; states: what computes hidden states, where
    it is not what the engine scores text with. Of each: the difference of the two logits in standard deviations of all
    logits there, so that one bound does for models whose logits are large and small; 0, too, where the scored forward
    gives no numbers.
    """
    if states is not None and shows_model(engine):
        how = scorer.of_model(engine.subject.model, states)
    else:
        how = scorer.of_engine(engine)
    predicted = how.predict([Row(tuple(prompt.tolist()), (tuple(chosen),), (0,))])
    outputs = how.logits(predicted.hidden)
    found = [
        _below(few.float(), tokens)
        for few, tokens in zip(
            torch.split(outputs, SOFTMAX_ROWS), torch.split(predicted.tokens, SOFTMAX_ROWS), strict=True
        )
    ]
    return [round(gap, 6) for gap in torch.cat(found).tolist()]


def is_coarse(engine: Engine) -> bool:
    """Tell whether one call and many give other numbers by rights, beyond the rounding of floating-point arithmetic.

    So it is where keys and values are kept in few bits or forgotten, where small inputs are set to zero (one that
    rounding moves over the threshold comes or goes as a whole), and where an engine quantizes what it multiplies.
    """
    if not shows_model(engine):
        return not engine.exact
    thresholds = [each.threshold for each in engine.subject.model.modules() if isinstance(each, Thresholded)]
    return engine.subject.cache is not None or any(threshold > 0 for threshold in thresholds)


def _below(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the gap of each token, (n,); logits: (n, vocabulary), tokens: (n,) int64."""
    own = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return ((logits.amax(-1) - own) / logits.std(-1)).nan_to_num(0.0, 0.0, 0.0)
