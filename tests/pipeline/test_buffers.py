"""Memory is lent to one at a time, and comes back when nothing refers to it any more."""

import pickle

import numpy as np
import pytest
import torch

from pipeline.buffers import SPARE, Buffers


@pytest.mark.parametrize(("dtype", "wanted"), [(np.float16, torch.float16), (np.float32, torch.float32)])
def test_a_tensor_of_the_shape_and_type_that_was_asked_for_is_lent(dtype: type, wanted: torch.dtype) -> None:
    lent = Buffers().lend((2, 3, 5), dtype)
    assert lent.shape == (2, 3, 5) and lent.dtype == wanted and lent.is_contiguous()


def test_what_nobody_has_is_lent_again() -> None:
    buffers = Buffers()
    lent = buffers.lend((4, 1000), np.float16)
    address = lent.data_ptr()
    del lent
    assert buffers.lend((2, 999), np.float16).data_ptr() == address  # it fits


def test_what_somebody_has_is_not() -> None:
    buffers = Buffers()
    lent = buffers.lend((4, 1000), np.float16)
    address = lent.data_ptr()
    part = lent.split(2, dim=0)[0]
    del lent
    other = buffers.lend((4, 1000), np.float16)
    assert other.data_ptr() != address
    values = part.numpy()[1]
    del part
    assert buffers.lend((4, 1000), np.float16).data_ptr() not in (address, other.data_ptr())
    del values
    again = [buffers.lend((4, 1000), np.float16) for _ in range(2)]
    assert address in [one.data_ptr() for one in again]


def test_a_larger_one_is_not_made_of_a_smaller() -> None:
    buffers = Buffers()
    buffers.lend((10,), np.float32)
    assert buffers.lend((11,), np.float32).untyped_storage().nbytes() == 44


def test_few_pieces_wait_for_their_next_use() -> None:
    buffers = Buffers()
    lent = [buffers.lend((10,), np.float16) for _ in range(3 * SPARE)]
    del lent
    assert len(buffers._spare) == SPARE


def test_memory_stays_in_its_process() -> None:
    buffers = Buffers()
    buffers.lend((1000,), np.float16)
    assert len(pickle.dumps(buffers)) < 200


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pages_are_locked_where_a_gpu_will_read_them() -> None:
    assert Buffers(pin_memory=True).lend((3, 4), np.float16).is_pinned()
