"""Visual tokens that got least attention are no tokens any more: held against blocks that are called by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.visual_pruning import VisualPruning, places_kept, taken
from squeeze.models.settings import eager_attention
from squeeze.models.tiny import VOCABULARY
from tests.tiny import tiny_model

VISUAL, BEFORE, BEHIND = 36, 3, 7  # tokens of the picture, and of the text around it
FORM = VisualPruning(after=2, kept=0.25)
LEFT = BEFORE + 9 + BEHIND


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(behind: int = BEHIND) -> dict[str, torch.Tensor]:
    """Two prompts, each with a picture of its own."""
    text = torch.randint(256, (2, BEFORE + 99), generator=torch.Generator().manual_seed(1))
    picture = torch.full((2, VISUAL), VOCABULARY)
    token_ids = torch.cat([text[:, :BEFORE], picture, text[:, BEFORE : BEFORE + behind]], dim=1)
    return {"input_ids": token_ids, "pixel_values": random(2, 3, 48, 48)}


def made(form: VisualPruning | None = FORM, dtype: str = "float32") -> Any:
    """A tiny model that reads pictures, of weights so large that attention is no plain mean."""
    model: Any = tiny_model("llava", dtype)
    for layer in model.model.language_model.layers:
        layer.self_attn.q_proj.weight.data *= 3
        layer.self_attn.k_proj.weight.data *= 3
    if form is not None:
        form.shape(model)
    return model


@torch.inference_mode()
def stay(form: VisualPruning, read: dict[str, torch.Tensor]) -> list[list[int]]:
    """The places that stay of each row, by the whole attention maps of block K."""
    model = made(None)
    with eager_attention(model):
        maps = model(**read, output_attentions=True).attentions[form.after - 1]  # (rows, heads, tokens, tokens)
    found = []
    for row, received in zip(read["input_ids"], maps.mean(dim=(1, 2)), strict=True):
        visual = (row == VOCABULARY).nonzero()[:, 0].tolist()
        best = sorted(visual, key=lambda place: -float(received[place]))[: round(form.kept * len(visual))]
        found.append(sorted({*range(len(row))} - {*visual} | {*best}))
    return found


@torch.inference_mode()
def written_out(form: VisualPruning, read: dict[str, torch.Tensor], places: list[list[int]]) -> torch.Tensor:
    """The logits of what stays: later blocks are called one by one, without cache and mask, on the states of that."""
    model = made(None)
    language = model.model.language_model
    states = model(**read, output_hidden_states=True).hidden_states[form.after]
    rows = []
    for row, kept in zip(states, places, strict=True):
        left = row[None, kept]
        rotations = language.rotary_emb(left, position_ids=torch.tensor([kept]))
        for block in language.layers[form.after :]:
            left = block(left, position_embeddings=rotations, attention_mask=None)
        rows.append(model.lm_head(language.norm(left)))
    return torch.cat(rows)


def test_the_least_attended_go_hand_computed() -> None:
    received = torch.tensor([[0.0, 0.3, 0.1, 0.2, 0.0], [0.0, 0.1, 0.2, 0.3, 0.0]])
    pictured = torch.tensor([[False, True, True, True, False]]).expand(2, -1)
    assert places_kept(received, pictured, 1 / 3).tolist() == [[0, 1, 4], [0, 3, 4]]
    assert places_kept(received, pictured, 2 / 3).tolist() == [[0, 1, 3, 4], [0, 2, 3, 4]]
    assert places_kept(received, pictured, 1.0).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert places_kept(torch.zeros(1, 5), pictured[:1], 1 / 3).tolist() == [[0, 3, 4]], "of equal ones the later"


def test_what_is_taken_is_of_each_row_or_of_all_alike() -> None:
    places = torch.tensor([[0, 2], [1, 2]])
    own, common = torch.arange(12).view(2, 3, 2), torch.arange(3)[None]
    assert taken(own, places).tolist() == [[[0, 1], [4, 5]], [[8, 9], [10, 11]]]
    assert taken(common, places).tolist() == places.tolist()


@pytest.mark.parametrize("form", [FORM, VisualPruning(1, 0.5), VisualPruning(3, 0.1)])
@torch.inference_mode()
def test_later_blocks_see_what_is_left_written_out(form: VisualPruning) -> None:
    read = inputs()
    places = stay(form, read)
    assert places[0] != places[1], "each picture keeps its own"
    expected = written_out(form, read, places)
    found = made(form)(**read).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    others = [[*range(BEFORE + round(form.kept * VISUAL)), *range(BEFORE + VISUAL, BEFORE + VISUAL + BEHIND)]] * 2
    wrong = written_out(form, read, others)
    assert (wrong - expected)[:, -1].abs().max() > 1e-2 * expected.abs().max(), "which are left makes a difference"


@pytest.mark.parametrize("steps", [[1, 1, 1, 1], [3, 1], [4]])
@torch.inference_mode()
def test_what_follows_goes_through_a_cache_of_what_is_left(steps: list[int]) -> None:
    """Token by token, and several at once, for which there is a mask: of the same positions, seeing the same."""
    read, whole = inputs(), inputs(BEHIND + 4)
    model, cache = made(), DynamicCache(config=tiny_model("llava").config)
    first = model(**read, past_key_values=cache, use_cache=True).logits[:, -1:]
    parts = whole["input_ids"][:, -4:].split(steps, dim=1)
    later = [model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in parts]
    places = [[*kept, *range(BEFORE + VISUAL + BEHIND, BEFORE + VISUAL + BEHIND + 4)] for kept in stay(FORM, read)]
    expected = written_out(FORM, whole, places)[:, -5:]
    found = torch.cat([first, *later], dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    tokens = BEFORE + VISUAL + BEHIND + 4
    assert [layer.keys.shape[-2] for layer in cache.layers] == [tokens, tokens, LEFT + 4, LEFT + 4]
    assert cache.get_seq_length() == tokens, "so that positions stay those of the text"


@torch.inference_mode()
def test_a_second_picture_is_pruned_as_the_first_one() -> None:
    read, cache = inputs(), DynamicCache(config=tiny_model("llava").config)
    model = made()
    for _ in range(2):
        model(**read, past_key_values=cache, use_cache=True)
    tokens = 2 * (BEFORE + VISUAL + BEHIND)
    assert [layer.keys.shape[-2] for layer in cache.layers] == [tokens, tokens, 2 * LEFT, 2 * LEFT]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_text_alone_and_pictures_that_stay_whole_come_out_as_they_did(dtype: str) -> None:
    plain, text = made(None, dtype), inputs()["input_ids"][:, -BEHIND:]
    assert torch.equal(made(FORM, dtype)(input_ids=text).logits, plain(input_ids=text).logits)
    read = inputs()
    assert torch.equal(made(VisualPruning(2, 1.0), dtype)(**read).logits, plain(**read).logits)


@torch.inference_mode()
def test_a_copy_prunes_by_itself_and_a_forward_that_fails_leaves_nothing() -> None:
    model, read = made(), inputs()
    copied = copy.deepcopy(model)
    expected = model(**read).logits
    watcher = copied.model.language_model.layers[1].self_attn.watcher
    assert watcher is not model.model.language_model.layers[1].self_attn.watcher
    assert torch.equal(copied(**read).logits, expected)

    def fail(*_: object) -> None:
        raise RuntimeError("not today")

    handle = copied.model.language_model.layers[3].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="not today"):
        copied(**read)
    handle.remove()
    assert watcher.pictured is watcher.kept is watcher.rotations is None
    assert torch.equal(copied(**read).logits, expected)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"input_ids": inputs()["input_ids"][:, : BEFORE + VISUAL]}, "a picture ends the prompt"),
        ({"attention_mask": torch.ones(2, BEFORE + VISUAL + BEHIND).tril(9)}, "rows are padded"),
        ({"past_key_values": StaticCache(tiny_model("llava").config, max_cache_len=64)}, "fixed shapes, expected one"),
        ({"input_ids": None, "inputs_embeds": random(2, 5, 64)}, "found by input_ids, which are not given"),
    ],
)
def test_what_would_go_wrong_silently_is_refused(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(SqueezeError, match=reason):
        made()(**{**inputs(), **changed})


def test_rows_with_unequal_pictures_are_refused() -> None:
    read = inputs()
    read["input_ids"][1, BEFORE] = 7
    with pytest.raises(SqueezeError, match="rows have 35 to 36 tokens of pictures"):
        made()(**read)


def test_attention_that_is_not_watched_is_found_out() -> None:
    model = made()
    model.model.language_model.config._attn_implementation = "sdpa"
    with pytest.raises(SqueezeError, match="attention was not watched; expected attn_implementation 'sdpa_watched'"):
        model(**inputs())


@pytest.mark.parametrize(
    ("model", "form", "reason"),
    [
        (lambda: tiny_model("llama"), FORM, "pictures in llama models of llama blocks are not known here"),
        (lambda: tiny_model("bert"), FORM, "expected llava of llama blocks, such as model=llava_1_5_7b"),
        (lambda: made(None), VisualPruning(4, 0.5), "behind block 4 of 4; expected 1 to 3"),
        (lambda: made(None), VisualPruning(0, 0.5), "behind block 0 of 4"),
        (lambda: made(None), VisualPruning("2", 0.5), "behind block '2' of 4"),
        (lambda: made(None), VisualPruning(2, 0.0), r"a share of 0\.0 of the visual tokens cannot stay"),
        (lambda: made(None), VisualPruning(2, float("nan")), "a share of nan"),
        (lambda: made(), FORM, r"has the form VisualPruning\(after=2, kept=0\.25\) already"),
    ],
)
def test_models_that_it_does_not_suit_are_refused_and_left_as_they_were(
    model: Any, form: VisualPruning, reason: str
) -> None:
    found: nn.Module = model()
    before = [len(module._forward_pre_hooks) for module in found.modules()]
    with pytest.raises(Unsupported, match=reason):
        form.shape(found)
    assert [len(module._forward_pre_hooks) for module in found.modules()] == before
