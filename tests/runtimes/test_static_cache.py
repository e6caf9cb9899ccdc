"""A cache of fixed size gives back what was written to it, by block, and copies nothing."""

from __future__ import annotations

import pytest
import torch

from squeeze.runtimes.static_cache import KeysAndValues

ROWS, POSITIONS, CHANNELS = 2, 7, 4
HEADS = (2, 1, 2)  # of keys and values, in each block
LIKE = torch.empty(0, dtype=torch.bfloat16)


def made() -> KeysAndValues:
    return KeysAndValues.of(HEADS, ROWS, POSITIONS, CHANNELS, LIKE)


def written(cache: KeysAndValues, start: int, stop: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(start)
    texts = [torch.randn(ROWS, stop - start, 2 * heads, CHANNELS, generator=generator).bfloat16() for heads in HEADS]
    for slot, text in zip(cache.slots(start, stop), texts, strict=True):
        slot.copy_(text)
    return texts


def test_each_block_reads_what_it_wrote_and_no_more() -> None:
    cache = made()
    parts = [written(cache, 0, 3), written(cache, 3, 4), written(cache, 4, 6)]
    for stop, count in ((3, 1), (4, 2), (6, 3)):
        for block, (keys, values) in enumerate(cache.seen(stop)):
            text = torch.cat([part[block] for part in parts[:count]], dim=1).transpose(1, 2)
            assert torch.equal(keys, text[:, : HEADS[block]])
            assert torch.equal(values, text[:, HEADS[block] :])


def test_what_is_read_is_a_view() -> None:
    cache = made()
    held = {tensor.untyped_storage().data_ptr() for tensor in cache.tensors}
    views = [each for pair in cache.seen(5) for each in pair] + cache.slots(5, 6)
    assert {view.untyped_storage().data_ptr() for view in views} == held
    assert len(held) == 2  # blocks of as many heads lie together


def test_its_bytes_are_those_of_all_positions() -> None:
    assert made().nbytes == ROWS * POSITIONS * CHANNELS * 2 * 2 * sum(HEADS)
    assert {tensor.dtype for tensor in made().tensors} == {torch.bfloat16}


def test_there_is_no_room_beyond_the_last_position() -> None:
    cache = made()
    assert len(cache.slots(6, 7)) == len(HEADS)
    with pytest.raises(IndexError, match="room for 7 tokens, 8 are asked for"):
        cache.slots(7, 8)
