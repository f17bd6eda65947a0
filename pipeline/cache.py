"""Where things lie in a cache. The one place that knows the names of its files."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cache:
    """The folder `root`, as paths.

    A shard is named by its path below `latents/` without ending, `<H>x<W>/<generation>-<number>`. A column (latents,
    or one text encoder's) holds `<shard>.tar` and, as its commit record, the sidecar `<shard>.parquet`.
    """

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "manifest" / "part-00000.parquet"

    @property
    def scenes(self) -> Path:
        """The scenes of the manifest's videos."""
        return self.root / "manifest" / "scenes.parquet"

    @property
    def scan_journal(self) -> Path:
        """What a scan that is not done yet has read."""
        return self.root / "manifest" / "scan.jsonl"

    @property
    def tombstones(self) -> Path:
        """The planned videos that have left the source; missing where none has."""
        return self.root / "plan" / "tombstones.parquet"

    @property
    def forecast(self) -> Path:
        return self.root / "forecast.json"

    @property
    def index(self) -> Path:
        return self.root / "index.parquet"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def latents(self) -> Path:
        return self.root / "latents"

    def text(self, encoder: str) -> Path:
        return self.root / "text" / encoder

    def text_index(self, encoder: str) -> Path:
        return self.text(encoder) / "index.parquet"

    def text_origin(self, encoder: str) -> Path:
        """What made that encoder's column."""
        return self.text(encoder) / "encoder.json"

    def plan(self, generation: int) -> Path:
        return self.root / "plan" / f"gen-{generation:04d}.parquet"

    def plans(self) -> list[Path]:
        """Every generation of the plan, oldest first."""
        return sorted((self.root / "plan").glob("gen-*.parquet"))

    def quarantine(self, name: str) -> Path:
        """The quarantine of one stage or shard; a stage that runs again replaces its own."""
        return self.root / "quarantine" / f"{name.replace('/', '-')}.parquet"

    def quarantines(self) -> list[Path]:
        return sorted((self.root / "quarantine").glob("*.parquet"))


def tar_path(column: Path, shard: str) -> Path:
    return column / f"{shard}.tar"


def sidecar_path(column: Path, shard: str) -> Path:
    return column / f"{shard}.parquet"
