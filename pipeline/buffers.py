"""Memory for batches, used again when they are gone."""

import weakref
from collections import deque
from contextlib import suppress
from math import prod

import numpy as np
import torch
from torch import Tensor

SPARE = 8  # pieces that wait for their next use; more are given back to the system
TORCH_DTYPES = {np.float16: torch.float16, np.float32: torch.float32}


class Buffers:
    """Lends memory, which comes back by itself when the last tensor that has it is gone.

    For what is read into pages that are new to a process, the system's work on the pages costs as much as the reading.
    """

    def __init__(self, pin_memory: bool = False) -> None:
        """`pin_memory` lends page-locked memory, from which a GPU copies while it computes."""
        self.pin_memory = pin_memory
        self._spare: deque[np.ndarray] = deque(maxlen=SPARE)

    def __reduce__(self) -> tuple:
        return type(self), (self.pin_memory,)  # memory stays in its process

    def lend(self, shape: tuple[int, ...], dtype: type) -> Tensor:
        """A tensor of any content; nobody else has its memory while there is one that does."""
        if self.pin_memory:  # which torch itself uses again
            return torch.empty(shape, dtype=TORCH_DTYPES[dtype], pin_memory=True)
        memory = self._find(prod(shape) * np.dtype(dtype).itemsize)
        array = np.ndarray(shape, dtype, memory.data)  # all tensors that come of this one refer to it
        weakref.finalize(array, self._spare.append, memory).atexit = False
        return torch.from_numpy(array)

    def _find(self, num_bytes: int) -> np.ndarray:
        with suppress(IndexError):  # another thread took the last one
            for _ in range(len(self._spare)):
                memory = self._spare.popleft()
                if memory.nbytes >= num_bytes:
                    return memory
                self._spare.append(memory)
        return np.empty(num_bytes, np.uint8)
