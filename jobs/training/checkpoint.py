"""Checkpoints that are either whole or not there, and that any number of ranks can read.

`step-N/` holds safetensors files of every rank, with the pieces of each parameter that the rank held: its float32
master weights, Adam's two moments and the average. `COMMITTED.json` says what belongs to it and which piece is where.
It is written aside as `step-N.<something>.tmp`, read back and compared, marked and then renamed: a folder without the
suffix is whole.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import torch.distributed as dist
from safetensors import safe_open
from safetensors import torch as as_safetensors
from torch import Tensor

from jobs.training.committed import (
    Committed,
    Extent,
    WrittenFile,
    begin,
    commit,
    crc32c_of,
    find_damage,
    list_committed,
    read_committed,
    remove,
    write_synced,
)
from jobs.training.engine import Engine
from jobs.training.zero_state import Piece
from models.weights import read_weights, split_by_bytes
from pipeline.errors import Refused

Result = TypeVar("Result")
UNTRAINED_NAME = "untrained.safetensors"
FILE_BYTES = 2**30  # of which a rank holds two at a time in the CPU's memory


def save(engine: Engine, folder: Path, step: int, facts: dict[str, Any]) -> Path:
    """Commit a checkpoint of all ranks as `folder/step-<step>`; called by every rank.

    Where it is there already nothing is done: the same step of the same run is the same state. Where a file of any rank
    cannot be written nothing is left of it, and every rank is Refused.
    """
    final = folder / f"step-{step:08d}"
    aside = _by_first(lambda: begin(final))
    if aside is None:
        return final
    try:
        written: Any = _write_pieces(engine, aside)
        if dist.get_rank() == 0:
            written.append(_write(aside / UNTRAINED_NAME, engine.untrained(), []))
    except Refused as error:
        written = error
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(written, everywhere if dist.get_rank() == 0 else None)

    def end() -> None:
        if problems := [one for one in everywhere if isinstance(one, Refused)]:
            remove(aside)
            raise problems[0]
        files = [file for one in everywhere for file in one]
        shapes = {name: list(shape) for name, shape in engine.shapes.items()}
        commit(aside, final, Committed(step, len(everywhere), facts, engine.counters, shapes, files))

    _by_first(end)
    return final


def _by_first(work: Callable[[], Result]) -> Result:
    """Have rank 0 do something and all ranks know what came of it, be it a refusal; called by every rank."""
    told: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            told = [work()]
        except Refused as error:
            told = [error]
    dist.broadcast_object_list(told)
    if isinstance(told[0], Refused):
        raise told[0]
    return told[0]


def _write_pieces(engine: Engine, aside: Path) -> list[WrittenFile]:
    """Write what this rank holds; of what every rank holds, its share."""
    rank, world = dist.get_rank(), dist.get_world_size()
    numbers = {name: number for number, name in enumerate(engine.shapes)}
    mine = {
        numbers[piece.name]: piece
        for piece in engine.pieces()
        if not piece.is_shared or numbers[piece.name] % world == rank
    }
    sizes = {number: sum(tensor.nbytes for tensor in piece.tensors.values()) for number, piece in mine.items()}
    written = []
    for count, group in enumerate(split_by_bytes(sizes, FILE_BYTES)):
        path = aside / f"rank-{rank:05d}-{count:03d}.safetensors"
        tensors = {
            f"{state}/{mine[number].name}": tensor for number in group for state, tensor in mine[number].tensors.items()
        }
        extents = [Extent(number, mine[number].start, len(mine[number].tensors["ema"])) for number in group]
        written.append(_write(path, tensors, extents))
    return written


def _write(path: Path, tensors: dict[str, Tensor], extents: list[Extent]) -> WrittenFile:
    """Write a file, and read it back: what is on disk is what was in memory."""
    content = as_safetensors.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_synced(path, content)
    wanted = google_crc32c.value(content)
    if crc32c_of(path) != wanted:
        raise Refused(f"{path}: reads back as other bytes than were written; look after the disk, then run again")
    return WrittenFile(path.name, len(content), wanted, extents)


def resume(engine: Engine, folder: Path) -> int:
    """Restore the newest checkpoint of a run, if any -> the number of steps done; called by every rank."""
    newest = _by_first(lambda: (list_committed(folder) or [None])[-1])
    return 0 if newest is None else load(engine, newest)


def load(engine: Engine, checkpoint: Path) -> int:
    """Restore all that is trained from a committed checkpoint of any number of ranks; called by every rank.

    Returns the number of steps done. Refused where a file is damaged or the model is another one.
    """
    told = read_committed(checkpoint)
    before, now = {name: tuple(shape) for name, shape in told.shapes.items()}, engine.shapes
    if changed := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
        raise Refused(
            f"{checkpoint}: trains other parameters than this run, such as {changed[0]}; change [model] and "
            f"train.lr_scales back, or use another train.out"
        )
    _check_together(checkpoint, told.files)
    engine.set_untrained(read_weights(checkpoint / UNTRAINED_NAME))
    read_pieces(checkpoint, told, engine.pieces())
    engine.restored(told.counters)
    return told.step


def _check_together(checkpoint: Path, files: Sequence[WrittenFile]) -> None:
    """Refused on all ranks where a file is damaged; each reads its share of them, which at the same number of ranks is
    about what it will want."""
    rank, world = dist.get_rank(), dist.get_world_size()
    share = files[rank * len(files) // world : (rank + 1) * len(files) // world]
    found: list[Any] = [None] * world
    dist.all_gather_object(found, find_damage(checkpoint, share))
    if problems := [one for one in found if one]:
        raise Refused(problems[0])


def read_pieces(checkpoint: Path, told: Committed, pieces: Iterable[Piece]) -> None:
    """Fill the tensors of `pieces` from files that were checked, each of which is opened at most once."""
    numbers = {name: number for number, name in enumerate(told.shapes)}
    wanted = {numbers[piece.name]: piece for piece in pieces}
    missing = Counter({number: len(tensor) for number, piece in wanted.items() for tensor in piece.tensors.values()})
    for file in told.files:
        needed = [one for one in file.extents if one.parameter in wanted and _overlap(one, wanted[one.parameter])]
        if not needed:
            continue
        with safe_open(checkpoint / file.name, framework="pt") as opened:
            for stored in needed:
                piece = wanted[stored.parameter]
                both = _overlap(stored, piece)
                for state, tensor in piece.tensors.items():
                    found = opened.get_slice(f"{state}/{piece.name}")
                    into = tensor[both.start - piece.start : both.stop - piece.start]
                    into.copy_(found[both.start - stored.start : both.stop - stored.start])
                missing[stored.parameter] -= len(both)
    if short := [number for number, count in missing.items() if count]:
        raise Refused(f"{checkpoint}: holds only a part of {list(told.shapes)[short[0]]}; delete the folder")


def _overlap(stored: Extent, piece: Piece) -> range:
    """The elements of a parameter that both have."""
    ends = min(stored.start + stored.length, piece.start + len(next(iter(piece.tensors.values()))))
    return range(max(stored.start, piece.start), ends)
