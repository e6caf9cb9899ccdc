"""Make prompts of several kinds out of pinned texts: what is guessed easily behind one kind is missed behind another.

continuation   prose, to go on with
summary        prose, to be summed up
code           Python, to go on with
lookup         prose and, once more, its beginning: to be copied
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from squeeze.sources import corpora
from squeeze.sources import fetch as assets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

TOKENS = 128  # of a prompt
CODE = "code"
# What stands behind the prose of each other kind, and how many tokens of the prose follow that once more.
ENDS: Mapping[str, tuple[str, int]] = {
    "continuation": ("", 0),
    "summary": ("\n\nIn summary,", 0),
    "lookup": ("\n\nOnce more, word for word:\n\n", 24),
}
KINDS = (*ENDS, CODE)
# Out of a package that is fetched for its text anyway. Tests: code with few words between.
SOURCE = {
    "source": "pypi:gensim==4.4.0",
    "wheel_sha256": "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    "member": "gensim/test/test_word2vec.py",
    "sha256": "4c2f46b27c6b35be7104197b41894ff43721b30b9d987fceae8e047724ef7fca",
}
BEGINNING = "\nclass "  # behind the licence and the imports


def fetch() -> None:
    """Fetch what prompts need beside the corpora of a protocol. Raises what ``sources.fetch.fetch`` raises."""
    assets.fetch(SOURCE)


def code() -> str:
    """Return the text of the kind ``code``, from its first class on."""
    whole = assets.fetch(SOURCE).read_bytes().decode()
    return whole[whole.index(BEGINNING) + 1 :]


def prompt(kind: str, number: int, tokenizer: PreTrainedTokenizerBase, corpus: str) -> torch.Tensor:
    """Return prompt ``number`` of a kind, the same everywhere: (1, TOKENS) int64.

    corpus: the prose. Prompts of a number begin in pieces of it of their own, and so do those of a kind. Raises
    SqueezeError where a text is too short, KeyError for a kind that is none.
    """
    import torch

    if kind == CODE:
        needed = (number + 1) * TOKENS
        return corpora.first_tokens(code(), CODE, tokenizer, needed)[None, -TOKENS:]
    words, again = ENDS[kind]
    end = tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"] if words else []
    place = (number * len(ENDS) + list(ENDS).index(kind)) * TOKENS
    prose = corpora.tokens(corpus, tokenizer, place + TOKENS)[place : place + TOKENS - len(end) - again]
    return torch.cat([prose, torch.tensor(end, dtype=torch.int64), prose[:again]])[None]
