"""Leave out the tokens of a picture that got least attention, from a block on: the form of FastV's models.

Chen, Zhao, Liu, Liu, Bai, Lin, Zhou, Chang 2024, "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference
Acceleration for Large Vision-Language Models" (arXiv:2403.06764), section 4.1. Behind block K the tokens of a picture
are ranked by the attention that they received in that block, averaged over heads and over the tokens that attend, and
those of the least are no tokens any more: later blocks neither compute them nor keep their keys and values. Text stays,
and every token that is left keeps its position.

What is left out is chosen once, where the picture is read, by all tokens that are read with it: text before it and
behind it. Text without a picture goes through as it always did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.attended_cache import votes
from squeeze.models import architecture

WATCHED = "sdpa_watched"  # what transformers calls the attention function
WATCHER = "watcher"  # the attribute of an attention module that holds who looks at its queries and keys
KNOWN = ("llava", "llama")  # model_type of the whole, and of the language model within: how blocks are called

Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a module is called with: by place, and by name


@dataclass(frozen=True)
class VisualPruning:
    """Give an uncompressed model this form; a model that has it holds this as its ``form``, which artifacts store.

    after: K, blocks that see all tokens; the paper's 2. kept: share of a picture's tokens that later blocks see, above
    0 and at most 1; the paper's R is what is left out.
    """

    after: int
    kept: float

    def shape(self, model: nn.Module) -> None:
        """Give a model the form, in place; no weight changes. Raises Unsupported as ``check`` does."""
        check(model, self)
        AttentionInterface.register(WATCHED, watched)
        AttentionMaskInterface.register(WATCHED, sdpa_mask)
        blocks, dropping = architecture.blocks(model), Dropping(int(_config(model).image_token_id), self.kept)
        attention: Any = blocks[self.after - 1].self_attn
        attention.config._attn_implementation = WATCHED  # of all blocks of the language model, who share it
        setattr(attention, WATCHER, dropping)
        base = architecture.base_model(model)
        base.register_forward_pre_hook(dropping.begin, with_kwargs=True)
        base.register_forward_hook(dropping.end, always_call=True)
        for block in blocks[self.after :]:
            block.register_forward_pre_hook(dropping.enter, with_kwargs=True)
        model.form = self  # type: ignore[assignment]


def check(model: nn.Module, form: VisualPruning) -> None:
    """Raise Unsupported where this model cannot have this form."""
    config = _config(model)
    found = (config.model_type, architecture.text_config(model).model_type)
    if found != KNOWN:
        raise Unsupported(
            f"pictures in {found[0]} models of {found[1]} blocks are not known here; expected {KNOWN[0]} of {KNOWN[1]}"
            " blocks, such as model=llava_1_5_7b"
        )
    if (there := architecture.form(model)) is not None:
        raise Unsupported(f"the model has the form {there} already; expected a model without one")
    blocks = len(architecture.blocks(model))
    if type(form.after) is not int or not 0 < form.after < blocks:
        raise Unsupported(
            f"visual tokens cannot be left out behind block {form.after!r} of {blocks}; expected 1 to {blocks - 1}"
        )
    if not isinstance(form.kept, int | float) or not 0 < form.kept <= 1:
        raise Unsupported(f"a share of {form.kept!r} of the visual tokens cannot stay; expected above 0, at most 1")


class Dropping:
    """Hold what is known while one forward runs: where its picture is, and which tokens later blocks see.

    token: that stands for a piece of a picture. share: of these that stay.
    pictured: (rows, tokens) bool, where the picture is; None while none is read. kept: (rows, left) int64, the places
    of the tokens that stay, ascending; None until attention was seen. rotations: their position embeddings.
    """

    def __init__(self, token: int, share: float) -> None:
        self.token, self.share = token, share
        self.pictured: Tensor | None = None
        self.kept: Tensor | None = None
        self.rotations: tuple[Tensor, ...] | None = None

    def begin(self, _: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Find the picture in what a model is about to read.

        Raises SqueezeError without token ids, and where a picture is read in rows of unequal lengths or with unequal
        numbers of its tokens, with no text behind it, or through a cache of fixed shapes.
        """
        self._forget()
        token_ids: Tensor | None = named.get("input_ids", positional[0] if positional else None)
        if token_ids is None:
            raise SqueezeError("a picture's tokens are found by input_ids, which are not given; expected these")
        if token_ids.shape[1] == 1:  # one that is decoded: without a look at it, for which a GPU would have to wait
            return
        pictured = token_ids == self.token
        if not bool(pictured.any()):
            return
        fewest, most = (int(found) for found in pictured.sum(dim=1).aminmax())
        if fewest != most:
            raise SqueezeError(f"rows have {fewest} to {most} tokens of pictures, expected as many in each")
        if bool(pictured[:, -1].any()):
            raise SqueezeError(
                "a picture ends the prompt; expected text behind it, off whose last token the next is read"
            )
        mask, cache = named.get("attention_mask"), named.get("past_key_values")
        if mask is not None and not bool(mask.bool().all()):
            raise SqueezeError("rows are padded, expected rows of one length")
        if getattr(cache, "is_compileable", False):
            raise SqueezeError("the cache has fixed shapes, expected one that grows: later blocks hold fewer tokens")
        self.pictured = pictured

    def attended(self, queries: Tensor, keys: Tensor, scaling: float) -> None:
        """Choose the tokens that stay, by the attention of a block.

        queries: (rows, heads, tokens, head_dim), of the tokens that are read; keys: (rows, heads of keys, tokens held,
        head_dim), of these and those before them.
        """
        if self.pictured is None:
            return
        heads, tokens = queries.shape[1:3]
        # One row at a time: its probabilities are tokens x tokens for each head.
        each = [votes(row[None], held[None], scaling).sum(dim=1) for row, held in zip(queries, keys, strict=True)]
        self.kept = places_kept(torch.cat(each)[:, -tokens:] / (heads * tokens), self.pictured, self.share)

    def enter(self, block: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> Call:
        """Return what a later block is called with: the states of the tokens that stay, and what belongs to them.

        Raises SqueezeError where the picture's attention was not seen: nothing would ever be left out.
        """
        states, *others = positional
        named = dict(named)
        if self.pictured is not None:
            if self.kept is None:
                raise SqueezeError(f"attention was not watched; expected attn_implementation {WATCHED!r}")
            if self.rotations is None:
                states = taken(states, self.kept)
                self.rotations = tuple(taken(each, self.kept) for each in named["position_embeddings"])
            named |= {"position_embeddings": self.rotations, "position_ids": taken(named["position_ids"], self.kept)}
        if (mask := named.get("attention_mask")) is not None:
            named["attention_mask"] = _last(mask, states.shape[1], _held(block, named.get("past_key_values")))
        return (states, *others), named

    def end(self, *_: Any) -> None:
        """Forget the picture: what comes next is another text."""
        self._forget()

    def _forget(self) -> None:
        self.pictured = self.kept = self.rotations = None


def places_kept(received: Tensor, pictured: Tensor, share: float) -> Tensor:
    """Return the places of the tokens that stay: (rows, left) int64, ascending.

    received: (rows, tokens), the attention that each token got. pictured: (rows, tokens) bool, as many in each row. Of
    these the share of the most attention stays, of equal ones the later; of the others all do.
    """
    visual = int(pictured[0].sum())
    least = received.masked_fill(~pictured, torch.inf).argsort(dim=-1, stable=True)
    gone = least[:, : visual - round(share * visual)]
    stays = torch.ones_like(pictured).scatter_(1, gone, False)
    return stays.nonzero()[:, 1].view(len(stays), -1)


def taken(values: Tensor, places: Tensor) -> Tensor:
    """Return (rows, left, ...) of values (rows, tokens, ...), or (1, tokens, ...) for all rows alike."""
    rows = torch.arange(len(places), device=places.device)
    return values[rows[:, None] if len(values) > 1 else 0, places]


def watched(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attend as ``sdpa`` does, then show queries and keys to whoever watches this module."""
    outcome: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    if (watcher := getattr(module, WATCHER, None)) is not None:
        scaling = settings.get("scaling")
        watcher.attended(query, key, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return outcome


def _last(mask: Tensor, tokens: int, held: int) -> Tensor:
    """Return the mask of so many tokens behind so many held ones: the corner of that of more.

    mask: (rows, 1, tokens, tokens held), in which each token sees those before it and no row is padded. Then it does
    not matter which tokens were left out.
    """
    return mask[..., -tokens:, -(held + tokens) :]


def _held(block: Any, cache: Any) -> int:
    return 0 if cache is None else int(cache.get_seq_length(block.self_attn.layer_idx))


def _config(model: nn.Module) -> Any:
    return model.config
