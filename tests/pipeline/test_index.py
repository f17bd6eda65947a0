"""The index holds the sidecars in plan order, is written only when they change, and belongs to one recipe."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from models.vae import load_vae
from pipeline.errors import Refused
from pipeline.index import check_index, merge_index, open_index
from pipeline.recipe import Recipe
from pipeline.shard import Packed
from tests.shards import write_shard

RECIPE = Recipe(load_vae("dct").spec, fps=24.0, buckets=((64, 64),), max_chunks=3, tail="drop")
OTHER = replace(RECIPE, fps=12.0)


@dataclass(frozen=True)
class Row:
    key: str
    offset: int


def write(column: Path, shard: str, keys: str, recipe: Recipe = RECIPE) -> None:
    packed = [Packed(key, {"txt": key.encode()}) for key in keys]
    facts = {"recipe": recipe.fingerprint()}
    write_shard(column, shard, packed, Row, lambda key, where: Row(key, where["txt"].offset), facts)


def keys(index: Path) -> str:
    return "".join(open_index(index, RECIPE, Row, "encode")["key"].to_pylist())


def test_rows_come_in_the_order_of_the_plan(tmp_path: Path) -> None:
    for shard, content in (("z/0", "ab"), ("a/0", "dc"), ("a/1", "")):
        write(tmp_path, shard, content)
    assert merge_index(tmp_path / "i", tmp_path, ["z/0", "a/1", "a/0"], Row)
    assert keys(tmp_path / "i") == "abdc"


def test_nothing_new_leaves_the_index_untouched(tmp_path: Path) -> None:
    write(tmp_path, "a", "ab")
    assert merge_index(tmp_path / "i", tmp_path, ["a"], Row) is True
    before = (tmp_path / "i").stat()
    assert merge_index(tmp_path / "i", tmp_path, ["a"], Row) is False
    after = (tmp_path / "i").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_new_or_changed_or_reordered_shard_is_merged_again(tmp_path: Path) -> None:
    write(tmp_path, "a", "ab")
    write(tmp_path, "b", "c")
    assert merge_index(tmp_path / "i", tmp_path, ["a"], Row)
    assert merge_index(tmp_path / "i", tmp_path, ["a", "b"], Row)
    assert keys(tmp_path / "i") == "abc"
    write(tmp_path, "b", "d")
    assert merge_index(tmp_path / "i", tmp_path, ["a", "b"], Row)
    assert keys(tmp_path / "i") == "abd"
    assert merge_index(tmp_path / "i", tmp_path, ["b", "a"], Row)
    assert keys(tmp_path / "i") == "dab"


def test_shards_of_two_recipes_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path, "a", "ab")
    write(tmp_path, "b", "c", OTHER)
    with pytest.raises(Refused, match="2 recipes"):
        merge_index(tmp_path / "i", tmp_path, ["a", "b"], Row)
    assert not (tmp_path / "i").exists()


def test_a_foreign_index_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", "ab", OTHER)
    merge_index(tmp_path / "i", tmp_path, ["a"], Row)
    found, wanted = OTHER.fingerprint()[:16], RECIPE.fingerprint()[:16]
    with pytest.raises(Refused, match=f"made by recipe {found}, the run wants {wanted}"):
        open_index(tmp_path / "i", RECIPE, Row, "encode")
    with pytest.raises(Refused, match=f"made by recipe {found}, the run wants {wanted}"):
        check_index(tmp_path / "i", RECIPE, "encode")


def test_its_footer_tells_one_state_from_another(tmp_path: Path) -> None:
    told = []
    for content in ("ab", "cd", "ab"):
        write(tmp_path, "a", content)
        merge_index(tmp_path / "i", tmp_path, ["a"], Row)
        told.append(check_index(tmp_path / "i", RECIPE, "encode")["shards_sha256"])
    assert told[0] == told[2] != told[1]


def test_a_missing_index_says_which_verb_writes_it(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"index\.parquet: not found; run `encode` first"):
        open_index(tmp_path / "index.parquet", RECIPE, Row, "encode")
