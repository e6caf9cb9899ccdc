"""Made-up token losses with the properties of real ones: heavy tails, texts that all models find hard."""

import numpy as np


def token_losses(rng, tokens, difference=0.0, correlation=0.3):
    """NLLs (2, tokens) of a candidate and a baseline: heavy tails, neighbouring tokens' differences correlated."""
    baseline = rng.gamma(1.0, 2.6, size=tokens)
    shocks = 0.3 * rng.standard_t(4, size=tokens)
    differences = np.empty(tokens)
    differences[0] = shocks[0]
    for token in range(1, tokens):
        differences[token] = correlation * differences[token - 1] + shocks[token]
    return np.stack([baseline + differences + difference, baseline])


def board(rng, rows, spread, noise=0.1):
    text = rng.gamma(4.0, 0.65, size=256)
    return text + np.sort(rng.exponential(spread, rows))[:, None] + noise * rng.standard_normal((rows, 256))
