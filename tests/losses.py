"""Made-up token losses with the properties of real ones: heavy tails, texts that all models find hard.

The differences between two models are drawn from a trace: those of three published rows (2-, 4- and 8-bit key-value
caches of SmolLM2-135M, losses of 32,760 tokens of Wikipedia against the uncompressed model's), in units of
their standard deviation, rounded to 0.06. Their blocks of 512 tokens have 1.33 times the variance that blocks
of 64 imply, and longer ones no more.
"""

from functools import cache
from pathlib import Path

import numpy as np

TRACE = Path(__file__).parent / "records" / "data" / "token_differences.npz"
STEP = 0.06
WINDOW = 1023  # tokens that are predicted of a window of 1,024


@cache
def differences():
    """Windows (rows, 32, WINDOW) of token differences between two models, of mean 0 and deviation 1 in each row."""
    with np.load(TRACE) as stored:
        rows = np.stack([STEP * stored[name].astype(float) for name in sorted(stored)])
    rows = rows[:, : rows.shape[1] // WINDOW * WINDOW]
    rows -= rows.mean(axis=1, keepdims=True)
    return rows.reshape(len(rows), -1, WINDOW)


def token_losses(rng, tokens, difference=0.0):
    """NLLs (2, tokens) of a candidate and a baseline that differ as published rows do, over windows drawn at random."""
    baseline = rng.gamma(1.0, 2.6, size=tokens)
    windows = differences()[rng.integers(len(differences()))]
    count = -(-tokens // WINDOW) + 1
    drawn = windows[rng.integers(len(windows), size=count)].ravel()
    start = rng.integers(WINDOW)  # a text's blocks need not begin where a window does
    return np.stack([baseline + 0.3 * drawn[start : start + tokens] + difference, baseline])


def board(rng, rows, spread, noise=0.1):
    text = rng.gamma(4.0, 0.65, size=256)
    return text + np.sort(rng.exponential(spread, rows))[:, None] + noise * rng.standard_normal((rows, 256))
