from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_lightning.data.windows import ResumableSampler, Windows


def numbered(windows: int) -> Windows:
    return Windows(torch.arange(windows + 1), 1, 1)


@given(st.integers(2, 60), st.integers(1, 12), st.integers(1, 15))
def test_windows_equal_the_books(tokens: int, context_length: int, stride: int) -> None:
    token_ids = torch.arange(tokens)
    expected = [
        (list(range(i, i + context_length)), list(range(i + 1, i + context_length + 1)))
        for i in range(0, tokens - context_length, stride)
    ]

    windows = Windows(token_ids, context_length, stride)

    assert [(x.tolist(), y.tolist()) for x, y in (windows[i] for i in range(len(windows)))] == expected


@given(st.integers(2, 60), st.integers(1, 12))
def test_with_a_stride_of_context_length_no_token_is_predicted_twice(tokens: int, context_length: int) -> None:
    windows = Windows(torch.arange(tokens), context_length, context_length)

    predicted = [i for k in range(len(windows)) for i in windows[k][1].tolist()]

    assert predicted == list(range(1, len(windows) * context_length + 1))
    assert windows.unused_tokens == tokens - 1 - len(predicted)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.data())
def test_ranks_share_each_epoch_without_overlap_and_resume_at_any_batch(
    windows: int, batch_size: int, world_size: int, epoch: int, data: st.DataObject
) -> None:
    global_batch = batch_size * world_size

    def rows(skip: int) -> list[list[int]]:
        every = numbered(windows)
        ranks = range(world_size)
        orders = [ResumableSampler(every, global_batch, 123, epoch, skip, rank, world_size) for rank in ranks]
        return [list(order) for order in orders]

    whole = rows(0)
    batches = windows // global_batch
    skip = data.draw(st.integers(0, batches))

    seen = [index for row in whole for index in row]
    assert len(seen) == len(set(seen)) == batches * global_batch
    assert all(0 <= index < windows for index in seen)
    assert rows(skip * global_batch) == [row[skip * batch_size :] for row in whole]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 7))
def test_global_batches_do_not_depend_on_ranks_and_batch_sizes(
    batch_size: int, world_size: int, accumulated: int, batches: int, rest: int
) -> None:
    size = batch_size * world_size * accumulated
    windows = size * batches + min(rest, size - 1)
    every = numbered(windows)
    alone = list(ResumableSampler(every, size, 7))
    rows = [list(ResumableSampler(every, size, 7, rank=rank, world_size=world_size)) for rank in range(world_size)]

    share = batch_size * accumulated
    for batch in range(batches):
        together = [index for row in rows for index in row[share * batch : share * (batch + 1)]]
        assert sorted(together) == sorted(alone[size * batch : size * (batch + 1)])


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    order = ResumableSampler(numbered(50), 1, 123)
    first, again = list(order), list(order)
    order.set_epoch(1)

    assert first == again == list(ResumableSampler(numbered(50), 1, 123))
    assert list(order) == list(ResumableSampler(numbered(50), 1, 123, epoch=1)) != first
    assert list(ResumableSampler(numbered(50), 1, 124)) != first
    generator = torch.Generator().manual_seed(123 * 1_000_003)
    assert first == torch.randperm(50, generator=generator).tolist()
