"""Score text of the same kind that no row is ranked by: what a model gains on one text of a kind, it gains on another.

It is the end of the evaluation text, far behind what a protocol scores. A row that predicts the scored text better than
the uncompressed model, and this one not, has seen the scored text (``records.plausibility``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from squeeze.core.errors import SqueezeError
from squeeze.probes import scorer
from squeeze.probes.scoring import Row
from squeeze.runtimes.contract import Engine
from squeeze.sources import corpora

TOKENS = 2048
CHARACTERS = 16 * TOKENS  # more than any tokenizer takes on average
CHARACTERS_A_TOKEN = 5  # of English, rounded up: so much of a text may be scored


def held_out_nll(engine: Engine, scored: Mapping[str, Any]) -> Tensor | None:
    """Return the negative log-likelihood of each token but the first of each window, (n,) float32 in nats.

    scored: the protocol's text: corpus, tokens, window. None where no end of it is left that is not scored.
    """
    text = corpora.text(scored["corpus"])
    start = text.find("\n", max(len(text) - CHARACTERS, 0))
    if scored["tokens"] is None or CHARACTERS_A_TOKEN * scored["tokens"] > start:
        return None
    try:
        ids = corpora.first_tokens(text[start:], f"the end of {scored['corpus']}", engine.tokenizer, TOKENS)
    except SqueezeError:  # the last line but one is long, so that little is behind it
        return None
    windows = [window.tolist() for window in torch.split(ids, min(scored["window"], TOKENS)) if len(window) > 1]
    rows = [Row((window[0],), (tuple(window[1:]),), (0,)) for window in windows]
    how = scorer.of_engine(engine)  # a row at a time: some models' scores depend on their batch
    return -torch.cat([how.log_probabilities(how.predict([row]))[0] for row in rows])
