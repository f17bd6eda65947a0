"""`stats`: the sidecars of committed shards -> what the cached latents are like, and what would normalize them."""

import json
import shlex
from dataclasses import asdict

from rich.table import Table

from jobs.config import RunConfig
from jobs.events import Events
from jobs.plan import read_plan
from jobs.progress import console, say
from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.plan import shards_of
from pipeline.recipe import Recipe, read_recipe
from pipeline.shard import committed_footer
from pipeline.stats import ChannelStats, merge_all, normalization
from pipeline.storage import in_parallel, publish

DIGITS = 6  # significant ones, of the words to paste: float16 has three


def stats(config: RunConfig) -> int:
    """Merge the statistics of all committed shards, tell them by channel and write them down. No latent is read."""
    cache = config.cache
    recipe = read_recipe(cache)
    shards = list(shards_of(read_plan(cache)))
    found = shard_stats(cache, shards, recipe)
    merged = merge_all(found)
    if merged is None:
        raise Refused(f"{cache.latents}: none of its {len(shards)} shards holds latents; run `encode` first")
    shift, scale = normalization(merged, recipe.latent)
    document = {
        "recipe": recipe.fingerprint(),
        "shards": len(found),
        **asdict(merged),
        "std": merged.std,
        "normalization": {"shift": shift, "scale": scale},
    }
    publish(cache.stats, (json.dumps(document, indent=2) + "\n").encode())
    Events(cache.events, "stats").write("done", shards=len(found), planned=len(shards), values=merged.count)
    console.print(channel_table(merged, recipe.latent.channels))
    say(f"stats: {merged.count} values per channel, of {len(found)} of {len(shards)} shards -> {cache.stats}")
    say("to train on what is cached as mean 0 and std 1, and likewise to sample then:")
    say(f"  latentmill train {' '.join(override_words(shift, scale))}")
    return 0


def shard_stats(cache: Cache, shards: list[str], recipe: Recipe) -> list[ChannelStats]:
    """Those of the committed shards that `recipe` made, in their order; a shard whose videos all failed has none."""
    footers = in_parallel(lambda shard: committed_footer(cache.latents, shard) or {}, shards)
    ours = (footer for footer in footers if footer.get("recipe") == recipe.fingerprint())
    return [ChannelStats.from_json(footer["stats"]) for footer in ours if "stats" in footer]


def override_words(shift: tuple[float, ...], scale: tuple[float, ...]) -> list[str]:
    """The words that have `train` read the cache under another normalization, quoted for a shell."""

    def word(name: str, values: tuple[float, ...]) -> str:
        return shlex.quote(f"recipe.{name}=[{','.join(str(float(f'{value:.{DIGITS}g}')) for value in values)}]")

    return [word("shift", shift), word("scale", scale), "train.renormalize=true"]


def channel_table(merged: ChannelStats, channels: int) -> Table:
    """A row per channel of the cached arrays; where these are moments, the posterior's std come behind its means."""
    table = Table("channel", "mean", "std", "min", "max", title="cached latents")
    rows = zip(merged.mean, merged.std, merged.least, merged.greatest)
    for number, values in enumerate(rows):
        name = str(number) if number < channels else f"std of {number - channels}"
        table.add_row(name, *(f"{value:.4g}" for value in values))
    return table
