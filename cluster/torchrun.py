"""Be one of the processes that `torchrun` has started: no Ray, and ranks that it has given out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from cluster import notices


def is_rank() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this is the rank that does what is done once."""
    return int(os.environ["RANK"]) == 0


@contextmanager
def group() -> Iterator[None]:
    """Join the others, for whom this waits; torch.distributed is set up in the block, and SIGTERM is a notice.

    Where the block fails the group is left as it is: others may wait in it, and end when this process does.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    notices.listen()
    yield
    dist.barrier()  # where one leaves with an exit code, torchrun ends the others
    dist.destroy_process_group()


def from_first(value: Any) -> Any:
    """What the first rank has; called by all."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
