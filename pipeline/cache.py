"""Where things lie in a cache. The one place that knows the names of its files."""

from dataclasses import dataclass
from itertools import count, takewhile

from pipeline.errors import Refused
from pipeline.location import Place
from pipeline.storage import list_files


@dataclass(frozen=True)
class Cache:
    """The folder `root`, here or in an object store, as paths.

    A shard is named by its path below `latents/` without ending, `<H>x<W>/<generation>-<number>`. A column (latents,
    or one text encoder's) holds `<shard>.tar` and, as its commit record, the sidecar `<shard>.parquet`.
    """

    root: Place
    indexes: Place | None = None  # the folder of its indexes, where these are elsewhere, of some of its shards

    @property
    def recipe(self) -> Place:
        return self.root / "recipe.json"

    @property
    def manifest(self) -> Place:
        return self.root / "manifest" / "part-00000.parquet"

    @property
    def scenes(self) -> Place:
        """The scenes of the manifest's videos."""
        return self.root / "manifest" / "scenes.parquet"

    @property
    def scan_journal(self) -> Place:
        """The folder of what a scan that is not done yet has read."""
        return self.root / "manifest" / "scan"

    @property
    def tombstones(self) -> Place:
        """The planned videos that have left the source; missing where none has."""
        return self.root / "plan" / "tombstones.parquet"

    @property
    def forecast(self) -> Place:
        return self.root / "forecast.json"

    @property
    def index(self) -> Place:
        return (self.indexes or self.root) / "index.parquet"

    @property
    def events(self) -> Place:
        """One file of lines; in a store, where nothing can be appended to, a folder with one for each run."""
        return self.root / "events.jsonl"

    @property
    def stats(self) -> Place:
        return self.root / "stats.json"

    @property
    def latents(self) -> Place:
        return self.root / "latents"

    def text(self, encoder: str) -> Place:
        return self.root / "text" / encoder

    def text_index(self, encoder: str) -> Place:
        return (self.indexes / "text" / encoder if self.indexes else self.text(encoder)) / "index.parquet"

    def null_text(self, encoder: str) -> Place:
        """The embedding of the null caption, (tokens, dim) float16, which stands for no words."""
        return self.text(encoder) / "null.npy"

    def text_origin(self, encoder: str) -> Place:
        """What made that encoder's column."""
        return self.text(encoder) / "encoder.json"

    def plan(self, generation: int) -> Place:
        return self.root / "plan" / f"gen-{generation:04d}.parquet"

    def plans(self) -> list[Place]:
        """Every generation of the plan, oldest first: they are numbered without gaps, so no folder is listed."""
        return list(takewhile(lambda plan: plan.exists(), map(self.plan, count())))

    def quarantine(self, name: str) -> Place:
        """The quarantine of one stage or shard; a stage that runs again replaces its own."""
        return self.root / "quarantine" / f"{name.replace('/', '-')}.parquet"

    def quarantines(self) -> list[Place]:
        return list_files(self.root / "quarantine", ".parquet")


def tar_path(column: Place, shard: str) -> Place:
    return column / f"{_checked(shard)}.tar"


def sidecar_path(column: Place, shard: str) -> Place:
    return column / f"{_checked(shard)}.parquet"


def _checked(shard: str) -> str:
    """Refused where it would lie outside of its column: tables of a cache that others can write say what they like."""
    if shard.startswith("/") or ".." in shard.split("/"):
        raise Refused(f"{shard!r}: found as the name of a shard, wanted one below its column; restore the cache")
    return shard
