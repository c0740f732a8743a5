"""Data that move in one copy: what arrives, in which memory, and what is still known on the host."""

from dataclasses import replace

import torch
from shapeless_device import META, BlockingCopies

from lit_pref.batch import PairData, PreferenceBatch
from lit_pref.data.batching.collation import UncastBatch, collate
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.scores import PairScores, SequenceScores, TokenLogps

TEXT = TruncatedText("", "", "", True, True, extra_response="e")
SIDES = [([5, 6], [7, 8, 9], [10]), ([5], [11], [12, 13])]


def batch_of() -> PreferenceBatch:
    pairs = [
        PreferencePair(str(k), *ids, 0.5 * k, 0.7, {"trust": 1.0 + k}, None, TEXT, extra_response=[3, 4])
        for k, ids in enumerate(SIDES)
    ]
    batch = collate(pairs, 0, is_real=(True, False), extra_response=True, layout="prefix_shared")
    side = SequenceScores(torch.tensor([-1.0, -2.0]).double(), torch.tensor([3, 1]), {TokenLogps(): torch.ones(2, 3)})
    batch.stored["reference"] = PairScores(side, side)
    return batch


def tensors(batch: PreferenceBatch) -> list[torch.Tensor]:
    return batch._tensors()


def test_a_packed_batch_has_the_same_numbers_in_one_piece_of_memory():
    batch = batch_of()
    packed = UncastBatch(batch).pin_memory().batch
    assert len(tensors(packed)) == len(tensors(batch)) > 20
    assert all(torch.equal(one, other) for one, other in zip(tensors(packed), tensors(batch), strict=True))
    assert all(one.dtype == other.dtype for one, other in zip(tensors(packed), tensors(batch), strict=True))
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors(packed)}) == 1
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in tensors(packed))
    assert packed.rows.segments == batch.rows.segments and packed.pairs.ids == batch.pairs.ids


def test_a_batch_moves_in_one_copy_without_a_wait_and_keeps_what_the_host_knows():
    batch = batch_of()
    with BlockingCopies() as copies:
        moved = batch.to(META)
    assert not copies.found and all(tensor.device == META for tensor in tensors(moved))
    shapes = [(tensor.shape, tensor.dtype) for tensor in tensors(batch)]
    assert [(tensor.shape, tensor.dtype) for tensor in tensors(moved)] == shapes
    assert torch.equal(moved.pairs.host.columns["trust"], batch.pairs.columns["trust"])
    assert moved.extra_response is not None and torch.equal(moved.rows.host.input_ids, batch.rows.input_ids)
    assert moved.pairs.real.shape == (1,) and moved.pairs.real.device == META
    assert moved.to(META).pairs.host.chosen_lengths.tolist() == [3, 1]


def test_data_of_the_host_are_their_own_host():
    batch = batch_of().to("cpu")
    assert batch.host is batch and batch.pairs.host is batch.pairs
    changed = replace(batch.pairs, is_real=torch.tensor([True, True]))
    assert changed.real.tolist() == [0, 1] and batch.pairs.real.tolist() == [0]
    assert PairData(["a"], torch.tensor([1]), None).host.real.tolist() == [0]
