"""Packing keeps every sequence once, respects the budget, and makes equal lengths neighbours."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from udever.engine.packing import pack, plan
from udever.model.batch import PackedBatch

lengths_lists = st.lists(st.integers(1, 60), max_size=60)


@given(lengths=lengths_lists, budget=st.integers(1, 200))
def test_every_sequence_is_in_one_batch_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan(lengths, batch_tokens=budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert sum(lengths[i] for i in batch) <= budget or len(batch) == 1
    in_order = [lengths[i] for batch in batches for i in batch]
    assert in_order == sorted(lengths, reverse=True)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_packed_tokens_unpack_to_the_sequences(lengths: list[int]) -> None:
    sequences = [[i * 100 + j for j in range(length)] for i, length in enumerate(lengths)]
    for indices, batch in pack(sequences, batch_tokens=100, device=torch.device("cpu")):
        starts = batch.cu_seqlens.tolist()
        for position, index in enumerate(indices):
            assert batch.token_ids[starts[position] : starts[position + 1]].tolist() == sequences[index]
        assert batch.max_seqlen == max(len(sequences[i]) for i in indices)


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=30))
def test_runs_tile_the_batch_with_equal_lengths(lengths: list[int]) -> None:
    batch = PackedBatch.from_lists([[0] * length for length in lengths])
    tiled = [run.length for run in batch.runs for _ in range(run.sequences)]
    assert tiled == lengths
    assert [run.tokens.start for run in batch.runs] == [batch.cu_seqlens[run.first_sequence] for run in batch.runs]
    assert batch.runs[-1].tokens.stop == sum(lengths)
