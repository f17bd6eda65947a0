"""What values knobs take: types that pydantic checks, and makes of what was written what is meant."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from models.diffusion.masks import check_mixture
from models.dit import DITS
from models.text import TEXT_ENCODERS
from pipeline.batch_tables import TABLES
from pipeline.filter import check_filter
from pipeline.lengths import Entry, Table, check_table
from pipeline.location import Location

# Manifests put these into lines for a shell or for sbatch, where a space, a quote or a new line begins something else.
WORD = r"^[\w.:/@=+-]*$"


def _path_or_hub(text: str) -> str:
    """A path that is here, made absolute as those of PathHere; anything else may be a hub id and stays as it is."""
    path = Path(text).expanduser()
    return str(path.absolute()) if path.exists() or text.startswith((".", "/", "~")) else text


def _vae_name(name: str) -> str:
    """`diffusers:FOLDER` with the folder made absolute."""
    family, colon, argument = name.partition(":")
    return f"{family}:{_path_or_hub(argument)}" if colon else name


def _local_or_uri(text: str) -> str:
    """A local path made absolute, or s3://... and gs://... as they are."""
    return text if Location.of(text).bucket else str(Path(text).expanduser().absolute())


def _local(path: object) -> object:
    if "://" in str(path):
        raise ValueError("only sources and caches may lie in an object store; wanted a folder that all nodes see")
    return path


def _known_encoder(name: str) -> str:
    return _one_of(TEXT_ENCODERS, name)


def _known_dit(name: str) -> str:
    return _one_of(DITS, name)


def _known_filter(text: str) -> str:
    check_filter(text)
    return text


def _known_table(buckets: str | Table) -> str | Table:
    if isinstance(buckets, str):
        return _one_of(TABLES, buckets)
    check_table(buckets)
    return buckets


def _whole_entries(buckets: object) -> object:
    """Before pydantic tries both types in turn, which it would tell of."""
    for size, entries in buckets.items() if isinstance(buckets, dict) else ():
        for frames, entry in entries.items() if isinstance(entries, dict) else ():
            if not isinstance(entry, (list, tuple)) or len(entry) != len(Entry._fields):
                raise ValueError(f"{size}: {frames} = {entry} cannot be; wanted frames = [{', '.join(Entry._fields)}]")
    return buckets


def _known_masks(mixture: dict[str, float]) -> dict[str, float]:
    check_mixture(mixture)
    return mixture


def _one_of(known: Iterable[str], name: str) -> str:
    if name not in known:
        raise ValueError(f"not known; known: {', '.join(known)}")
    return name


def _of_one_word(path: Path) -> Path:
    if not re.fullmatch(WORD, str(path)):
        raise ValueError(f"wanted letters, digits and . : / @ = + - only, to match {WORD}")
    return path


ZeroName = Literal["zero0", "zero1", "zero2", "zero3", "zero2-offload", "zero3-offload", "zero3-nvme"]
LearningRateSchedule = Literal["constant", "linear", "cosine"]
Objective = Literal["rectified-flow", "iddpm"]

# Relative paths start where the command was given.
PathHere = Annotated[Path, BeforeValidator(_local), AfterValidator(Path.absolute)]
PathOrUri = Annotated[str, BeforeValidator(str), AfterValidator(_local_or_uri)]
PathOrHub = Annotated[str, AfterValidator(_path_or_hub)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
PathOfOneWord = Annotated[Path, AfterValidator(Path.absolute), AfterValidator(_of_one_word)]

VaeName = Annotated[str, AfterValidator(_vae_name)]
TextEncoderName = Annotated[str, AfterValidator(_known_encoder)]
DitName = Annotated[str, AfterValidator(_known_dit)]
Filter = Annotated[str, AfterValidator(_known_filter)]
Masks = Annotated[dict[str, Fraction], AfterValidator(_known_masks)]
Batches = Annotated[str | dict[str, dict[int, Entry]], BeforeValidator(_whole_entries), AfterValidator(_known_table)]

# What Kubernetes and Ray both take as a name and as a label.
Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,28}[a-z0-9])?$")]
NodeLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9._]*[a-z0-9])?=[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$")]
Word = Annotated[str, Field(pattern=WORD)]
# A Secret's name, never its content.
Reference = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")]
Option = Annotated[str, Field(pattern=r"^-[ -~]*$")]
