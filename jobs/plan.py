"""`plan`: manifest -> the next generation of the plan. Planned shards never change; new videos go to new ones."""

from collections import defaultdict
from dataclasses import asdict

from jobs.config import RunConfig
from jobs.configured import configured_recipe
from jobs.events import Events
from jobs.forecast import make_forecast
from jobs.progress import say
from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.plan import DROPPED, Account, find_tombstones, latent_bytes, make_plan, planned_videos, shards_of
from pipeline.quarantine import set_aside
from pipeline.recipe import bind_recipe
from pipeline.records import Clip, Scene, Tombstone, Video
from pipeline.storage import sweep_folder
from pipeline.tables import read_records, write_records


def plan(config: RunConfig) -> int:
    """Cut every video that is not planned yet into clips, and tell what encoding will take.

    Returns how many videos gave none.
    """
    cache, recipe = config.cache, configured_recipe(config)
    sweep_folder(cache.plan(0).parent)
    videos, planned = read_manifest(cache), planned_videos(cache)
    generation = len(cache.plans())
    fresh = [video for video in videos if video.id not in planned]
    made = make_plan(fresh, read_scenes(cache), recipe, config.encode.shard_bytes, generation)
    if not made.clips and not planned:
        filtered = [f"recipe.filter leaves {made.account.dropped_filter} frames out"] * (
            made.account.dropped_filter > 0
        )
        reasons = "; ".join([*filtered, *(f"{one.path}: {one.reason}" for one in made.quarantined[:3])])
        raise Refused(f"{cache.manifest}: none of the {len(videos)} videos gives a clip: {reasons}")
    bind_recipe(cache, recipe)
    set_aside(cache, "plan", made.quarantined)
    if made.clips:
        try:
            write_records(cache.plan(generation), Clip, made.clips, {"recipe": recipe.fingerprint()}, replace=False)
        except FileExistsError as error:
            raise Refused(f"{cache.plan(generation)}: planned by another run meanwhile; run `plan` again") from error
    tombstones = find_tombstones(planned, videos)
    write_tombstones(cache, tombstones)
    size = sum(latent_bytes(clip.num_frames, (clip.height, clip.width), recipe) for clip in made.clips)
    shards = len(shards_of(made.clips))
    facts = {"generation": generation, "clips": len(made.clips), "shards": shards, "bytes": size}
    facts |= {"removed": len(tombstones), "unusable": len(made.quarantined)}
    Events(cache.events, "plan").write("done", **facts, **asdict(made.account))
    removed = f", {len(tombstones)} of them removed since" if tombstones else ""
    say(
        f"plan: {len(made.clips)} new clips in {shards} shards, {size / 1e6:.1f} MB of latents; "
        f"{len(planned)} videos planned before{removed}"
    )
    say(describe_account(made.account))
    if config.encode.forecast:
        forecast = make_forecast(config, read_plan(cache), {video.id: video for video in videos})
        if forecast:
            say(forecast)
    return len(made.quarantined)


def describe_account(account: Account) -> str:
    """Where the frames of the new videos go, in two lines."""
    counts = asdict(account)
    parts = [f"{account.used} used", f"{account.padded} in chunks that are padded"]
    parts += [f"{counts[name]} dropped {told}" for name, told in DROPPED.items() if counts[name]]
    return (
        f"      {account.container} frames in the files, {account.container - account.frames} left out by sampling\n"
        f"      {account.frames} frames = {' + '.join(parts)}"
    )


def write_tombstones(cache: Cache, tombstones: list[Tombstone]) -> None:
    """Replace the tombstones; none leave no file."""
    if tombstones:
        write_records(cache.tombstones, Tombstone, tombstones)
    else:
        cache.tombstones.unlink(missing_ok=True)


def read_manifest(cache: Cache) -> list[Video]:
    """The videos, those that were removed among them; Refused before `scan`."""
    if not cache.manifest.exists():
        raise Refused(f"{cache.manifest}: not found; run `scan` first, or set data.cache")
    return read_records([cache.manifest], Video)


def read_scenes(cache: Cache) -> dict[str, list[Scene]]:
    """The scenes of each video, by its id; none where `scan` did not look for them."""
    scenes = defaultdict(list)
    for scene in read_records([cache.scenes], Scene) if cache.scenes.exists() else []:
        scenes[scene.video].append(scene)
    return dict(scenes)


def read_plan(cache: Cache) -> list[Clip]:
    """The clips of every generation, oldest first."""
    return read_records(cache.plans(), Clip)
