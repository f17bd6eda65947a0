"""Captions -> the text column: the same keys in the same order as the latents, each caption encoded once a shard.

Beside its shards lies the null caption, encoded once.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from models.latent_spec import Dtype
from models.text.interface import TextDescription, TextEncoder, TextSettings
from pipeline.cache import Cache, sidecar_path
from pipeline.errors import Refused
from pipeline.location import Place
from pipeline.records import Sample, TextSample, Video
from pipeline.sample import array_bytes
from pipeline.shard import Member, Packed, commit_shard, is_committed, writing_shard
from pipeline.storage import publish
from pipeline.tables import read_metadata, read_records


@dataclass(frozen=True)
class TextOrigin:
    """What made a text column, as training and sampling need to know it; `encoder.json` beside its shards."""

    name: str
    path: str | None  # of the weights
    dim: int
    max_tokens: int
    dtype: Dtype | None
    clean: bool  # whether captions were cleaned first
    fingerprint: str
    null_sha256: str = ""  # of the file with the null caption

    @property
    def settings(self) -> TextSettings:
        return TextSettings(self.max_tokens, self.dtype, self.clean)


def text_origin(description: TextDescription, path: str | None) -> TextOrigin:
    """The origin of a column that this encoder writes."""
    return TextOrigin(
        description.name, path, description.dim, **asdict(description.settings), fingerprint=description.fingerprint()
    )


def write_text_origin(cache: Cache, origin: TextOrigin) -> None:
    """State what made a column and its null caption; a file that says so already is left alone."""
    whole = replace(origin, null_sha256=null_sha256(cache, origin.name))
    path, content = cache.text_origin(origin.name), (json.dumps(asdict(whole), indent=2) + "\n").encode()
    if not path.exists() or path.read_bytes() != content:
        publish(path, content)


def read_text_origin(cache: Cache, encoder: str) -> TextOrigin:
    """What made the column of that encoder; Refused where there is none."""
    path = cache.text_origin(encoder)
    if not path.exists():
        raise Refused(f"{path}: not found; run `text` first, or set data.cache or text.encoder")
    try:
        return TextOrigin(**json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise Refused(f"{path}: not of this version ({error}); run `text` again") from error


def write_null_text(path: Place, encoder: TextEncoder) -> None:
    """Encode the null caption, which is empty."""
    [tokens] = encoder.encode([""])  # (tokens, dim)
    publish(path, array_bytes(tokens))


def null_sha256(cache: Cache, encoder: str) -> str:
    """Of the file with the null caption; empty where there is none."""
    path = cache.null_text(encoder)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def is_null_current(cache: Cache, origin: TextOrigin) -> bool:
    """Whether the null caption is there, whole, and made by this encoder."""
    if not cache.text_origin(origin.name).exists():
        return False
    recorded, found = read_text_origin(cache, origin.name), null_sha256(cache, origin.name)
    return recorded.fingerprint == origin.fingerprint and recorded.null_sha256 == found != ""


@dataclass(frozen=True)
class TextShard:
    """One shard's captions, and the facts by which its text is known to be current."""

    shard: str
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


def text_shard(cache: Cache, shard: str, videos: dict[str, Video], encoder: str) -> TextShard:
    """What the text of a shard should be: the keys of its latents, the manifest's captions of today.

    A removed video keeps its caption: its clips stay in the shard, and training leaves them out.
    `encoder` is the fingerprint of the text encoder.
    """
    sidecar = sidecar_path(cache.latents, shard)
    samples = read_records([sidecar], Sample)
    keys = tuple(sample.key for sample in samples)
    if gone := {sample.video for sample in samples if sample.video not in videos}:
        raise Refused(
            f"{shard}: {len(gone)} of its videos are not in the manifest, which keeps removed ones too; "
            f"restore it, or bring them back and run `scan`"
        )
    captions = tuple(videos[sample.video].caption for sample in samples)
    content = json.dumps([keys, captions]).encode()
    facts = {
        "encoder": encoder,
        "captions_sha256": hashlib.sha256(content).hexdigest(),
        "recipe": read_metadata(sidecar)["recipe"],
    }
    return TextShard(shard, keys, captions, tuple(facts.items()))


def is_current(column: Place, work: TextShard) -> bool:
    """Whether the shard's text was made by this encoder from these captions."""
    return is_committed(column, work.shard, dict(work.facts))


def write_text_shard(column: Place, work: TextShard, encoder: TextEncoder) -> None:
    """Encode a shard's captions, each distinct one once, and publish tar and sidecar."""
    distinct = list(dict.fromkeys(work.captions))
    encoded = dict(zip(distinct, encoder.encode(distinct), strict=True))  # caption -> (tokens, dim)
    rows = []
    with writing_shard(column, work.shard) as tar:
        for key, caption in zip(work.keys, work.captions, strict=True):
            where = tar.add(Packed(key, {"text.npy": array_bytes(encoded[caption]), "txt": caption.encode()}))
            rows.append(_text_sample(key, work.shard, caption, len(encoded[caption]), where["text.npy"]))
    commit_shard(column, work.shard, TextSample, rows, {**dict(work.facts), **tar.facts})


def _text_sample(key: str, shard: str, caption: str, num_tokens: int, text: Member) -> TextSample:
    return TextSample(key, shard, caption, num_tokens, text.offset, text.num_bytes, text.crc32c)
