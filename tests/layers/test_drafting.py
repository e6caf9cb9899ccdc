"""Guesses: by a model, what it would choose, whatever was refused before; by looking up, what followed before."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from squeeze.core.errors import SqueezeError
from squeeze.layers.drafting import ByLookup, ByModel, Runs
from tests.drafts import EAGER, lively, prompt, said
from tests.tiny import CAUSAL


@torch.inference_mode()
def greedy(name: str, text: torch.Tensor, tokens: int) -> list[list[int]]:
    return said(EAGER.engine(lively(name)), text, tokens).token_ids()


@pytest.mark.parametrize("accepted", [0, 1, 3, 4])
@pytest.mark.parametrize("name", CAUSAL)
@torch.inference_mode()
def test_a_model_guesses_what_it_would_choose_whatever_became_of_its_last_guesses(name: str, accepted: int) -> None:
    """Some are accepted, another token comes behind; the next are those of a model that reads it all anew."""
    guesses = ByModel(4).begin(lively(name).model)
    text = prompt(2)
    guesses.read(text)
    text = torch.cat([text, torch.tensor([[7], [9]])], dim=1)
    first = guesses.guess(text, 4)
    assert first.tolist() == greedy(name, text, 4)
    text = torch.cat([text, first[:, :accepted], torch.tensor([[3], [200]])], dim=1)
    assert guesses.guess(text, 4).tolist() == greedy(name, text, 4)
    assert guesses.cache.get_seq_length() == text.shape[1] + 3, "the last guess was never read"


@torch.inference_mode()
def test_what_was_guessed_in_vain_must_be_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug that the test above is there for: guesses go on from a text that nobody said."""
    monkeypatch.setattr(DynamicCache, "crop", lambda *_: None)
    guesses, text = ByModel(4).begin(lively().model), prompt(2)
    guesses.read(text)
    text = torch.cat([text, torch.tensor([[7], [9]])], dim=1)
    guesses.guess(text, 4)
    text = torch.cat([text, torch.tensor([[3], [200]])], dim=1)
    assert guesses.guess(text, 4).tolist() != greedy("llama", text, 4)


@torch.inference_mode()
def test_no_guess_is_asked_for_and_none_is_made() -> None:
    guesses, text = ByModel(4).begin(lively().model), prompt(2)
    guesses.read(text)
    assert guesses.guess(torch.cat([text, text[:, :1]], dim=1), 0).shape == (2, 0)


def test_without_a_model_none_guesses() -> None:
    with pytest.raises(SqueezeError, match="there is no draft model, expected one beside the model"):
        ByModel(4).begin(None)


@pytest.mark.parametrize(
    ("tokens", "longest", "following"),
    [
        ([1, 2, 3, 1, 2], 2, [3, 1, 2]),  # what followed 1, 2
        ([1, 2, 3, 9, 2, 4, 1, 2], 2, [3, 9, 2, 4, 1, 2]),  # two tokens go before one
        ([1, 2, 3, 9, 2, 4, 1, 2], 1, [3, 9, 2, 4, 1, 2]),  # and of one, the first place
        ([5, 2, 3, 1, 2], 2, [3, 1, 2]),  # no two, but one
        ([5, 6, 7, 8], 2, []),
        ([5, 5, 5, 5], 3, [5]),  # a run may lie over itself: it ended before the last token
        ([5], 2, []),
    ],
)
def test_what_followed_the_newest_tokens_by_hand(tokens: list[int], longest: int, following: list[int]) -> None:
    assert Runs(longest).following(tokens) == following


def test_what_is_known_of_a_text_grows_with_it() -> None:
    """Asked at each token, it answers as one that reads the text so far anew."""
    text = torch.randint(4, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    runs = Runs(3)
    for end in range(1, len(text)):
        assert runs.following(text[:end]) == Runs(3).following(text[:end]) == searched(text[:end], 3)


def searched(tokens: list[int], longest: int) -> list[int]:
    """The definition, written out: the longest run that stood before, at its first place."""
    for length in range(min(longest, len(tokens) - 1), 0, -1):
        for start in range(len(tokens) - length):
            if tokens[start : start + length] == tokens[-length:]:
                return tokens[start + length :]
    return []


def test_texts_together_get_as_many_guesses_as_each_has() -> None:
    guesses = ByLookup(4, 2).begin(None)
    text = torch.tensor([[1, 2, 3, 4, 5, 1, 2], [9, 8, 7, 6, 9, 8, 6]])
    guesses.read(text[:, :5])
    assert guesses.guess(text, 4).tolist() == [[3, 4, 5], [9, 8, 6]]
    assert guesses.guess(text, 1).tolist() == [[3], [9]]
    alone = torch.tensor([[1, 2, 3, 4, 5, 1, 2], [9, 8, 7, 6, 5, 4, 3]])
    guesses.read(alone[:, :5])
    found = guesses.guess(alone, 4)
    assert (found.shape, found.dtype) == ((2, 0), torch.int64)
