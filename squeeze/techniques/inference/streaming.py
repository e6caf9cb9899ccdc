"""Attend to the first tokens of a text and to its newest ones alone (StreamingLLM): a cache that no longer grows.

Xiao, Tian, Chen, Han, Lewis 2023, "Efficient Streaming Language Models with Attention Sinks" (arXiv:2309.17453). The
first tokens are seen by all others, and much attention goes to them whatever they say; without these sinks a window
over the newest tokens fails (section 3.1).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from squeeze.core.errors import Unsupported
from squeeze.layers.window_cache import WindowCache, rotary_frequencies
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.inference.evicting import PIECE, check_evicting


@dataclass(frozen=True)
class StreamingLLM:
    """Keep the keys and values of the sinks and of a window that slides with the text; keep the weights as they are.

    cache_tokens: the most that the cache ever holds. sinks: of them, the first of the text; the paper's 4, and 0 is
    window attention. piece: tokens that the window moves on at a time, counted from the text's beginning.

    The paper's window moves on a token at a time, and all tokens see cache_tokens before them; here they see more than
    cache_tokens - piece, at most cache_tokens, themselves among them. Scored text, prompts and generated tokens see the
    same. Positions are the paper's, places in the cache, where a rotary embedding gives them; where they are learned
    (GPT-2, OPT) they are those of the text, and as many as the model has.
    """

    cache_tokens: int
    sinks: int = 4
    piece: int = PIECE

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the subject with such a cache.

        Raises Unsupported for sizes that do not fit one another, and as ``check_evicting`` and ``rotary_frequencies``
        do.
        """
        if self.sinks < 0:
            raise Unsupported(f"streaming has no {self.sinks} sinks; expected at least 0")
        check_evicting(subject, "streaming", self.cache_tokens, self.piece, self.sinks)
        rotary_frequencies(subject.model.config)
        return replace(subject, cache=WindowCache(**asdict(self))).claiming(kv_cache=asdict(self))
