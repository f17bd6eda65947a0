"""A cache read again, whole: what is not as it was written, or not as recipe, plan and manifest say."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import numpy as np
from webdataset import WebDataset  # pyright: ignore[reportAttributeAccessIssue]

from pipeline.cache import Cache, sidecar_path, tar_path
from pipeline.errors import Refused
from pipeline.files import local_copy
from pipeline.index import merged_facts, merged_rows
from pipeline.location import Place
from pipeline.recipe import Recipe
from pipeline.records import Clip, Look, Quarantined, Sample, TextSample, Video
from pipeline.sample import array_bytes, clip_facts, clip_start_s, make_sample
from pipeline.shard import Member
from pipeline.stats import ChannelStats, merge_all
from pipeline.storage import size_of
from pipeline.tables import read_metadata, read_records, read_table
from pipeline.text_column import TextOrigin, TextShard, null_sha256

Row = TypeVar("Row")
CheckSample = Callable[[int, dict[str, bytes], dict[str, Member]], None]  # number, contents and places by ending
HASHED_BYTES = 1 << 20  # at once
SAME_STATS = 1e-9  # of a standard deviation: processors add up in different orders
SHOWN = 120  # characters of what was found


class Broken(Exception):
    """What is wrong with a shard, as what was found where something else was wanted."""

    def __init__(self, what: str, found: object, wanted: object) -> None:
        super().__init__(what, str(found)[:SHOWN], str(wanted)[:SHOWN])


@dataclass(frozen=True)
class PlannedShard:
    """A shard of latents as it should be."""

    shard: str
    clips: tuple[Clip, ...]
    videos: tuple[Video, ...]  # of those clips, as far as the manifest knows them
    facts: tuple[tuple[str, str], ...]  # that the sidecar's footer has to state


def check_latents(cache: Cache, recipe: Recipe, work: PlannedShard) -> None:
    """Read a committed shard of latents; Broken at the first thing that is wrong."""
    rows, footer = _read_sidecar(cache.latents, work.shard, Sample)
    _compare_footer(footer, work.facts)
    clips, videos = _clips_left(cache, work), {video.id: video for video in work.videos}
    _compare_lists("keys", [row.key for row in rows], [clip.key for clip in clips])
    stats: list[ChannelStats] = []

    def check(number: int, contents: dict[str, bytes], where: dict[str, Member]) -> None:
        clip, row = clips[number], rows[number]
        start_s = clip_start_s(videos[clip.video], clip) if clip.video in videos else row.start_s
        _compare(f"CRC-32C of {clip.key}.latent.npy", where["latent.npy"].crc32c, row.latent_crc32c)
        looks = Look(row.luminance, row.motion, row.sharpness)
        _compare_rows(row, make_sample(clip, work.shard, start_s, looks, row.psnr, where))
        _, *size = recipe.latent.latent_shape(clip.num_frames, clip.height, clip.width)  # (t, h, w)
        latents = _check_array(f"{clip.key}.latent.npy", contents["latent.npy"])  # (C, t, h, w)
        _compare(f"shape of {clip.key}.latent.npy", latents.shape, (recipe.latent.stored_channels, *size))
        _compare(f"{clip.key}.json", contents["json"], clip_facts(clip, start_s, recipe))
        stats.append(ChannelStats.of(latents[:, : recipe.latent.filled_latents(clip.valid_frames)]))

    _check_tar(cache.latents, work.shard, footer, [row.key for row in rows], ("json", "latent.npy"), check)
    _compare_stats(footer, merge_all(stats))


def check_text(cache: Cache, origin: TextOrigin, work: TextShard) -> None:
    """Read a committed shard of text; Broken at the first thing that is wrong, or not of today's captions."""
    column = cache.text(origin.name)
    rows, footer = _read_sidecar(column, work.shard, TextSample)
    _compare_lists("keys", [row.key for row in rows], work.keys)
    for row, caption in zip(rows, work.captions):
        _compare(f"caption of {row.key}", row.caption, caption)
    _compare_footer(footer, work.facts)

    def check(number: int, contents: dict[str, bytes], where: dict[str, Member]) -> None:
        row, key, caption = rows[number], work.keys[number], work.captions[number]
        text = where["text.npy"]
        _compare(f"CRC-32C of {key}.text.npy", text.crc32c, row.text_crc32c)
        tokens = _check_tokens(f"{key}.text.npy", contents["text.npy"], origin)
        wanted = TextSample(key, work.shard, caption, len(tokens), text.offset, text.num_bytes, text.crc32c)
        _compare_rows(row, wanted)
        _compare(f"{key}.txt", contents["txt"], caption.encode())

    _check_tar(column, work.shard, footer, work.keys, ("text.npy", "txt"), check)


def check_null(cache: Cache, origin: TextOrigin) -> None:
    """Read the null caption; Broken where it is not the one that the record of the column tells of."""
    path = cache.null_text(origin.name)
    if not path.exists():
        raise Broken("the null caption", "no file", "its embedding")
    _compare(f"SHA-256 of {path.name}", null_sha256(cache, origin.name), origin.null_sha256)
    _check_tokens(path.name, path.read_bytes(), origin)


def check_index(index: Place, column: Place, shards: Sequence[str], row_type: type) -> None:
    """Compare an index with the sidecars of these shards, which are whole; Broken where they merge to another one."""
    try:
        found, footer = read_table(index, row_type), read_metadata(index)
    except FileNotFoundError as error:
        raise Broken("the index", "no file", f"{len(shards)} shards, merged") from error
    except Refused as error:
        raise Broken("the index", error, f"a table of {row_type.__name__}") from error
    wanted = merged_rows(column, shards, row_type)
    _compare("rows of the index", found.num_rows, wanted.num_rows)
    for name in wanted.column_names:
        values, others = found[name].to_numpy(), wanted[name].to_numpy()
        if not np.array_equal(values, others, equal_nan=values.dtype.kind == "f"):
            raise Broken(f"{name} in the index", "other values", "those of the sidecars")
    _compare_footer(footer, tuple(merged_facts(column, shards).items()), "the index")


def _read_sidecar(column: Place, shard: str, row_type: type[Row]) -> tuple[list[Row], dict[str, str]]:
    sidecar = sidecar_path(column, shard)
    try:
        return read_records([sidecar], row_type), read_metadata(sidecar)
    except Refused as error:
        raise Broken(
            "the sidecar", str(error).removeprefix(f"{sidecar}: "), f"a table of {row_type.__name__}"
        ) from error


def _clips_left(cache: Cache, work: PlannedShard) -> list[Clip]:
    """The planned clips without those of the videos that the quarantine says the shard goes on without."""
    path = cache.quarantine(work.shard)
    left_out = {one.video for one in read_records([path], Quarantined)} if path.exists() else set()
    return [clip for clip in work.clips if clip.video not in left_out]


def _check_tar(
    column: Place,
    shard: str,
    footer: Mapping[str, str],
    keys: Sequence[str],
    endings: Sequence[str],
    check: CheckSample,
) -> None:
    """Compare a tar with its footer and names, give each sample to `check`, and decode it as others do."""
    _compare("bytes of the tar", size_of(tar_path(column, shard)), footer.get("tar_bytes"))
    with local_copy(str(tar_path(column, shard))) as path, open(path, "rb") as file:
        found = _walk(path)
        _compare_lists(
            "members of the tar", [name for name, *_ in found], [f"{k}.{end}" for k in keys for end in endings]
        )
        plain = _decode_plainly(path)
        members = iter(found)
        for number, key in enumerate(keys):
            contents, where = {}, {}
            for ending, (_, offset, num_bytes) in zip(endings, members):
                file.seek(offset)
                contents[ending] = file.read(num_bytes)
                where[ending] = Member(offset, num_bytes, google_crc32c.value(contents[ending]))
            check(number, contents, where)
            _compare_decoded(key, contents, next(plain, {}))
        _compare("SHA-256 of the tar", _sha256(path), footer.get("tar_sha256"))


def _walk(path: Path) -> list[tuple[str, int, int]]:
    """The files of a tar as (name, offset, bytes)."""
    try:
        with tarfile.open(path, "r:") as tar:
            return [
                (member.name if member.isreg() else f"{member.name}/", member.offset_data, member.size)
                for member in tar
            ]
    except (tarfile.TarError, ValueError) as error:
        raise Broken("the tar", error, "a tar") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(HASHED_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _check_array(name: str, content: bytes) -> np.ndarray:
    """The float16 array of a .npy file; Broken where it is another one, laid out otherwise, or not finite."""
    array = _parse_array(name, content)
    _compare(f"dtype of {name}", array.dtype.str, "<f2")
    if array_bytes(array) != content:
        raise Broken(f"layout of {name}", "another header or more bytes", "version 1.0, C order, nothing behind")
    if not_finite := int(array.size - np.isfinite(array).sum()):
        raise Broken(f"values of {name}", f"{not_finite} of {array.size} that are not finite", "numbers")
    return array


def _check_tokens(name: str, content: bytes, origin: TextOrigin) -> np.ndarray:
    """The embedding (tokens, dim) of a caption; Broken where it is none."""
    tokens = _check_array(name, content)
    if tokens.ndim != 2 or len(tokens) > origin.max_tokens or tokens.shape[1] != origin.dim:
        raise Broken(f"shape of {name}", tokens.shape, f"(at most {origin.max_tokens}, {origin.dim})")
    return tokens


def _parse_array(name: str, content: bytes) -> np.ndarray:
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        raise Broken(name, error, "an array without pickled objects") from error


# What a member of each kind is to a reader that knows nothing of us.
PLAIN: dict[str, Callable[[str, bytes], Any]] = {
    "npy": _parse_array,
    "json": lambda _, content: json.loads(content),
    "txt": lambda _, content: content.decode(),
}


def _decode_plainly(path: Path) -> Iterator[dict[str, Any]]:
    return iter(WebDataset([str(path)], shardshuffle=False, empty_check=False).decode())


def _compare_decoded(key: str, contents: Mapping[str, bytes], decoded: Mapping[str, Any]) -> None:
    _compare(f"key of {key} as webdataset reads it", decoded.get("__key__"), key)
    for ending, content in contents.items():
        wanted, found = PLAIN[ending.rpartition(".")[2]](ending, content), decoded.get(ending, "nothing")
        if type(found) is not type(wanted) or not np.array_equal(found, wanted):
            raise Broken(f"{key}.{ending} as webdataset decodes it", found, wanted)


def _compare(what: str, found: object, wanted: object) -> None:
    if str(found) != str(wanted):
        raise Broken(what, found, wanted)


def _compare_lists(what: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Broken by the first difference."""
    for number, (one, other) in enumerate(zip_longest(found, wanted, fillvalue="nothing")):
        if one != other:
            raise Broken(f"{what}, at number {number} of {len(wanted)}", one, other)


def _compare_footer(footer: Mapping[str, str], facts: Sequence[tuple[str, str]], table: str = "the sidecar") -> None:
    for name, wanted in facts:
        _compare(f"{name} in {table}", footer.get(name), wanted)


def _compare_rows(found: Any, wanted: Any) -> None:
    for field in fields(wanted):
        what = f"{field.name} of {wanted.key} in the sidecar"
        _compare(what, repr(getattr(found, field.name)), repr(getattr(wanted, field.name)))


def _compare_stats(footer: Mapping[str, str], wanted: ChannelStats | None) -> None:
    if wanted is None:
        return
    try:
        found = ChannelStats.from_json(footer["stats"])
        same = found.count == wanted.count and all(
            np.allclose(getattr(found, name), getattr(wanted, name), rtol=SAME_STATS, atol=SAME_STATS)
            for name in ("mean", "std", "least", "greatest")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Broken("stats in the sidecar", repr(error), "those of the latents") from error
    if not same:
        raise Broken("stats in the sidecar", found, wanted)
