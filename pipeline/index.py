"""The index: the sidecars of all committed shards in plan order, as one table per column."""

import hashlib
import json
from collections.abc import Sequence

import pyarrow as pa

from pipeline.cache import sidecar_path
from pipeline.errors import Refused
from pipeline.location import Place
from pipeline.recipe import Recipe
from pipeline.shard import committed_footer
from pipeline.storage import in_parallel, sweep_folder
from pipeline.tables import read_metadata, read_table, write_table


def merge_index(index: Place, column: Place, shards: Sequence[str], row_type: type) -> bool:
    """Publish the sidecars of `shards` as one table; False where the index already holds exactly these shards.

    Refused where one of them is not committed, or its tar is not the one that its sidecar was written for. No shards
    leave no index. What killed writers left beside it and beside the shards is swept up.
    """
    if not shards:
        index.unlink(missing_ok=True)
        return False
    for folder in {index.parent, *(sidecar_path(column, shard).parent for shard in shards)}:
        sweep_folder(folder)
    facts = merged_facts(column, shards)
    if index.exists() and read_metadata(index).get("shards_sha256") == facts["shards_sha256"]:
        return False
    write_table(index, merged_rows(column, shards, row_type).replace_schema_metadata(facts))
    return True


def merged_facts(column: Place, shards: Sequence[str]) -> dict[str, str]:
    """What the footer of an index of these shards says: the recipe, and a digest of what was merged."""
    found = dict(zip(shards, in_parallel(lambda shard: committed_footer(column, shard), shards)))
    if broken := [shard for shard, footer in found.items() if footer is None]:
        raise Refused(f"{column}: {len(broken)} shards are not whole, such as {broken[0]}; run the same command again")
    footers = [footer for footer in found.values() if footer is not None]
    recipes = {footer["recipe"] for footer in footers}
    if len(recipes) > 1:
        raise Refused(f"{column} mixes shards of {len(recipes)} recipes; delete those made by another recipe")
    merged = [[shard, footer["recipe"], footer["tar_sha256"]] for shard, footer in zip(shards, footers)]
    return {"recipe": recipes.pop(), "shards_sha256": hashlib.sha256(json.dumps(merged).encode()).hexdigest()}


def merged_rows(column: Place, shards: Sequence[str], row_type: type) -> pa.Table:
    """The sidecars of these shards as one table."""
    sidecars = [sidecar_path(column, shard) for shard in shards]
    return pa.concat_tables(list(in_parallel(lambda sidecar: read_table(sidecar, row_type), sidecars)))


def open_index(index: Place, recipe: Recipe, row_type: type, verb: str) -> pa.Table:
    """The table of one column; Refused as by `check_index`."""
    check_index(index, recipe, verb)
    return read_table(index, row_type)


def check_index(index: Place, recipe: Recipe, verb: str) -> dict[str, str]:
    """What an index's footer says; Refused where `verb` has not written it or another recipe made it."""
    if not index.exists():
        raise Refused(f"{index}: not found; run `{verb}` first, or set data.cache")
    footer = read_metadata(index)
    if footer["recipe"] != recipe.fingerprint():
        raise Refused(
            f"{index}: made by recipe {footer['recipe'][:16]}, the run wants {recipe.fingerprint()[:16]}; "
            f"encode again into another data.cache"
        )
    return footer
