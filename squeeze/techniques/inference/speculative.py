"""Draft with a compressed model, verify with the model itself: several tokens a forward, and the same text.

Leviathan, Kalman, Matias 2023, "Fast Inference from Transformers via Speculative Decoding" (arXiv:2211.17192). Each
step M_q, the draft, guesses gamma tokens, and M_p, the model, verifies them in one forward. Where a guess is right with
probability alpha, whatever the others are, a step gives (1 - alpha^(gamma + 1)) / (1 - alpha) tokens (eq. 1), and is
(1 - alpha^(gamma + 1)) / ((1 - alpha) (gamma c + 1)) times as fast (theorem 3.8), c being the time of M_q over M_p's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from squeeze.core.errors import Unsupported
from squeeze.layers.drafting import ByModel
from squeeze.models.architecture import reads_pictures, text_config
from squeeze.models.subject import Draft, Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.inference.plain_cache import check_plain_cache


@dataclass(frozen=True)
class Speculative:
    """Let the recipe's draft guess the tokens that the model generates; keep the model as it is.

    drafted_tokens: gamma, the most tokens that are guessed before they are verified. What guesses is the artifact of
    the recipe's list ``draft``: the same model, after steps of its own. It lies beside the model, and its bytes count.
    """

    drafted_tokens: int

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the subject with its draft.

        Raises Unsupported for fewer than one token, for a draft of another vocabulary, and as ``check_drafting`` does
        of the model and of the draft; SqueezeError where the recipe names no draft.
        """
        check_drafting(subject, "speculative", self.drafted_tokens)
        draft = calibration.draft()
        check_drafting(draft, "speculative: its draft", self.drafted_tokens)
        own, other = (text_config(each.model).vocab_size for each in (subject, draft))
        if own != other:
            raise Unsupported(
                f"speculative: the draft knows {other:,} tokens, the model {own:,}; expected the same ones"
            )
        drafting = Draft(ByModel(self.drafted_tokens), draft)
        return replace(subject, draft=drafting).claiming(drafted_tokens=self.drafted_tokens)


def check_drafting(subject: Subject, name: str, drafted_tokens: int) -> None:
    """Raise Unsupported unless a subject can draft, or be drafted for, and at least one token is drafted.

    name: of the technique. A model that reads pictures has another prompt than its tokens.
    """
    if drafted_tokens < 1:
        raise Unsupported(f"{name} cannot draft {drafted_tokens} tokens at a time; expected at least 1")
    check_plain_cache(subject, name)
    if reads_pictures(subject.model):
        raise Unsupported(f"{name}: {type(subject.model).__name__} reads pictures; expected a model of text alone")
