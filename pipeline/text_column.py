"""Captions -> the text column: the same keys in the same order as the latents, each caption encoded once a shard."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.cache import Cache, sidecar_path
from pipeline.errors import Refused
from pipeline.records import Sample, TextSample, Video
from pipeline.sample import array_bytes
from pipeline.shard import Member, Packed, is_committed, write_shard
from pipeline.tables import read_metadata, read_records


class TextEncoder(Protocol):
    """What the column needs of a text encoder."""

    name: str

    def fingerprint(self) -> str: ...

    def encode(self, captions: list[str]) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class TextShard:
    """One shard's captions, and the facts by which its text is known to be current."""

    shard: str
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


def text_shard(cache: Cache, shard: str, videos: dict[str, Video], encoder: TextEncoder) -> TextShard:
    """What the text of a shard should be: the keys of its latents, the manifest's captions of today."""
    sidecar = sidecar_path(cache.latents, shard)
    samples = read_records([sidecar], Sample)
    keys = tuple(sample.key for sample in samples)
    if gone := {sample.video for sample in samples} - videos.keys():
        raise Refused(f"{shard}: {len(gone)} of its videos left the manifest; bring them back and run `scan`")
    captions = tuple(videos[sample.video].caption for sample in samples)
    content = json.dumps([keys, captions]).encode()
    facts = {
        "encoder": encoder.fingerprint(),
        "captions_sha256": hashlib.sha256(content).hexdigest(),
        "recipe": read_metadata(sidecar)["recipe"],
    }
    return TextShard(shard, keys, captions, tuple(facts.items()))


def is_current(column: Path, work: TextShard) -> bool:
    """Whether the shard's text was made by this encoder from these captions."""
    return is_committed(column, work.shard, dict(work.facts))


def write_text_shard(column: Path, work: TextShard, encoder: TextEncoder) -> None:
    """Encode a shard's captions, each distinct one once, and publish tar and sidecar."""
    distinct = list(dict.fromkeys(work.captions))
    encoded = dict(zip(distinct, encoder.encode(distinct), strict=True))  # caption -> (tokens, dim)
    packed = [
        Packed(key, {"text.npy": array_bytes(encoded[caption]), "txt": caption.encode()})
        for key, caption in zip(work.keys, work.captions, strict=True)
    ]

    def rows(where: dict[str, Member]) -> list[TextSample]:
        return [
            TextSample(
                key=key,
                shard=work.shard,
                caption=caption,
                num_tokens=len(encoded[caption]),
                text_offset=where[f"{key}.text.npy"].offset,
                text_bytes=where[f"{key}.text.npy"].num_bytes,
                text_crc32c=where[f"{key}.text.npy"].crc32c,
            )
            for key, caption in zip(work.keys, work.captions, strict=True)
        ]

    write_shard(column, work.shard, packed, TextSample, rows, dict(work.facts))
