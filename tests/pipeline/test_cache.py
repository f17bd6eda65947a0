"""Whatever the tables of a cache say, its files lie in its folder."""

from pathlib import Path

import pytest

from pipeline.cache import Cache, sidecar_path, tar_path
from pipeline.errors import Refused
from pipeline.location import Location


def test_a_shard_lies_below_its_column() -> None:
    assert tar_path(Path("/c/latents"), "64x64/0000-00000") == Path("/c/latents/64x64/0000-00000.tar")
    assert str(sidecar_path(Location.of("s3://b/c"), "a..b")) == "s3://b/c/a..b.parquet"


@pytest.mark.parametrize("shard", ["../a", "/etc/a", "64x64/../../../a", ".."])
def test_a_name_that_leads_elsewhere_is_refused(shard: str) -> None:
    for path in (tar_path, sidecar_path):
        with pytest.raises(Refused, match="wanted one below its column"):
            path(Path("/c/latents"), shard)
    quarantine = Cache(Path("/c")).quarantine(shard)
    assert quarantine.parent == Path("/c/quarantine")
