"""Draft without a model: what followed the newest tokens earlier in the text is guessed to follow them again.

Saxena 2023, "Prompt Lookup Decoding" (github.com/apoorvumang/prompt-lookup-decoding). Guesses are verified as those of
a draft model are (Leviathan et al. 2023, arXiv:2211.17192), so the text is the same; they cost next to nothing, and
are right where a text repeats its prompt: in summaries, in code, in what is to be copied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from squeeze.core.errors import Unsupported
from squeeze.layers.drafting import ByLookup
from squeeze.models.subject import Draft, Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.inference.speculative import check_drafting


@dataclass(frozen=True)
class PromptLookup:
    """Look up the tokens that the model generates in the text before them; keep the model as it is.

    drafted_tokens: the most tokens that are guessed before they are verified. longest_match: of the newest tokens, as
    many as are looked for first, then one fewer, down to one; the first place where they stand counts, as in the
    original and in transformers.
    """

    drafted_tokens: int
    longest_match: int = 2

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the subject that drafts so.

        Raises Unsupported for matches of no token, and as ``check_drafting`` does.
        """
        if self.longest_match < 1:
            raise Unsupported(f"prompt_lookup cannot look for {self.longest_match} tokens; expected at least 1")
        check_drafting(subject, "prompt_lookup", self.drafted_tokens)
        drafting = Draft(ByLookup(self.drafted_tokens, self.longest_match))
        return replace(subject, draft=drafting).claiming(drafted_tokens=self.drafted_tokens)
