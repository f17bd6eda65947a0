"""`plan`: manifest -> the next generation of the plan. Planned shards never change; new videos go to new ones."""

from dataclasses import asdict

from jobs.config import RunConfig, configured_recipe
from jobs.progress import Events, say
from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.plan import latent_bytes, make_plan, shards_of
from pipeline.quarantine import set_aside
from pipeline.recipe import bind_recipe
from pipeline.records import Clip, Video
from pipeline.tables import read_records, write_records


def plan(config: RunConfig) -> int:
    """Cut every video that is not planned yet into clips. Returns how many gave none."""
    cache = config.cache
    recipe = configured_recipe(config)
    videos = read_manifest(cache)
    bind_recipe(cache.root, recipe)
    planned = {clip.video for clip in read_plan(cache)}
    generation = len(cache.plans())
    made = make_plan(
        (video for video in videos if video.id not in planned), recipe, config.encode.shard_bytes, generation
    )
    if not made.clips and not planned:
        reasons = "; ".join(f"{one.path}: {one.reason}" for one in made.quarantined[:3])
        raise Refused(f"{cache.manifest}: none of the {len(videos)} videos gives a clip: {reasons}")
    set_aside(cache, "plan", made.quarantined)
    if made.clips:
        write_records(cache.plan(generation), Clip, made.clips, {"recipe": recipe.fingerprint()})
    account = made.account
    size = sum(latent_bytes(clip, recipe) for clip in made.clips)
    events = Events(cache.events, "plan")
    events.write("done", generation=generation, clips=len(made.clips), bytes=size, **asdict(account))
    say(
        f"plan: {len(made.clips)} new clips in {len(shards_of(made.clips))} shards, {size / 1e6:.1f} MB of latents; "
        f"{len(planned)} videos planned before\n"
        f"      {account.frames} frames = {account.used} used + {account.dropped_tail} dropped behind the last chunk "
        f"+ {account.dropped_short} of {len(made.quarantined)} videos that are too short"
    )
    return len(made.quarantined)


def read_manifest(cache: Cache) -> list[Video]:
    """The videos; Refused before `scan`."""
    if not cache.manifest.exists():
        raise Refused(f"{cache.manifest}: not found; run `scan` first, or set data.cache")
    return read_records([cache.manifest], Video)


def read_plan(cache: Cache) -> list[Clip]:
    """The clips of every generation, oldest first."""
    return read_records(cache.plans(), Clip)
