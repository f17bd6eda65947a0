"""Both indexes of a cache and what describes them, for tests that read no shard."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from models.text import describe_text_encoder
from models.text.interface import TextSettings
from models.vae import load_vae
from pipeline.cache import Cache
from pipeline.recipe import Recipe, bind_recipe
from pipeline.records import Sample, TextSample
from pipeline.tables import write_records
from pipeline.text_column import text_origin, write_null_text, write_text_origin

RECIPE = Recipe(load_vae("dct").spec, fps=24.0, buckets=((64, 64), (64, 96)), max_chunks=6, tail="drop")
ENCODER = describe_text_encoder("bytes", None, TextSettings(max_tokens=20))


def make_sample(number: int, **fields) -> Sample:
    """A clip of one chunk of the video v0 in the shard s0."""
    plain = Sample(f"k{number}", "s0", "v0", 0.0, 20.0, 64, 64, 1, 17, 17, 512 * number, 2688, 7 * number, 0, 2)
    return replace(plain, **fields)


def text_of(sample: Sample) -> TextSample:
    number = int(sample.key[1:])
    return TextSample(sample.key, sample.shard, f"caption {number}", number % 5, 256 * number, 128, 11 * number)


def write_indexes(cache: Cache, samples: Sequence[Sample], texts: Sequence[TextSample] | None = None, **of) -> None:
    """A cache of these clips, as `write_index` and `write_text_index` write them; `of` may have another `recipe`."""
    bind_recipe(cache, of.get("recipe", RECIPE))
    write_null_text(cache.null_text("bytes"), ENCODER.load())
    write_text_origin(cache, text_origin(ENCODER, None))
    write_index(cache, samples, **of)
    write_text_index(cache, [text_of(sample) for sample in samples] if texts is None else texts, **of)


def write_index(cache: Cache, samples: Sequence[Sample], recipe: Recipe = RECIPE) -> None:
    write_records(cache.index, Sample, samples, _footer(samples, recipe))


def write_text_index(cache: Cache, texts: Sequence[TextSample], recipe: Recipe = RECIPE) -> None:
    write_records(cache.text_index("bytes"), TextSample, texts, _footer(texts, recipe))


def _footer(rows: Sequence[Sample] | Sequence[TextSample], recipe: Recipe) -> dict[str, str]:
    """Other rows, another digest, as where they are merged from sidecars."""
    content = json.dumps([asdict(row) for row in rows]).encode()
    return {"recipe": recipe.fingerprint(), "shards_sha256": hashlib.sha256(content).hexdigest()}
