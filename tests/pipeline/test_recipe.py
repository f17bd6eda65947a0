"""A cache belongs to one recipe: another one is refused, and told what differs."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from models.vae import load_vae
from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.recipe import (
    CUTTING,
    Recipe,
    bind_recipe,
    check_mixable,
    check_recipe,
    convertible_recipe,
    differences,
    read_recipe,
)

RECIPE = Recipe(load_vae("dct").spec, fps=24.0, buckets=((64, 64), (64, 96)), max_chunks=3, tail="drop")
CHANGES = {
    "latent": load_vae("dct:8").spec,
    "fps": 23.976,
    "buckets": ((64, 96), (64, 64)),  # the order decides between equals
    "max_chunks": 4,
    "tail": "pad",
    "min_chunks": 2,
    "upscale": 1.5,
    "scenes": "content",
    "scene_threshold": 20.0,
    "filter": "motion > 0.01",
    "dtype": "float32",
    "frames": "every second",
    "resize": "stretch",
    "pixels": "BGR in [0, 1]",
}


def changed(field: str) -> Recipe:
    return replace(RECIPE, **{field: CHANGES[field]})


def edit(cache: Path, change) -> None:
    path = cache / "recipe.json"
    document = json.loads(path.read_text())
    change(document["recipe"])
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_every_field_changes_the_fingerprint(field: str) -> None:
    assert changed(field).fingerprint() != RECIPE.fingerprint()


def test_a_recipe_survives_json() -> None:
    again = Recipe.from_dict(json.loads(json.dumps(RECIPE.to_dict())))
    assert again == RECIPE
    assert again.fingerprint() == RECIPE.fingerprint()


def test_a_bound_cache_tells_its_recipe(tmp_path: Path) -> None:
    bind_recipe(Cache(tmp_path / "cache"), RECIPE)
    assert read_recipe(Cache(tmp_path / "cache")) == RECIPE
    before = (tmp_path / "cache" / "recipe.json").read_bytes()
    bind_recipe(Cache(tmp_path / "cache"), RECIPE)
    check_recipe(Cache(tmp_path / "cache"), RECIPE)
    assert (tmp_path / "cache" / "recipe.json").read_bytes() == before


@pytest.mark.parametrize("use", [bind_recipe, check_recipe])
def test_another_recipe_is_refused_field_by_field(tmp_path: Path, use) -> None:
    bind_recipe(Cache(tmp_path), RECIPE)
    other = replace(RECIPE, fps=12.0, latent=replace(RECIPE.latent, posterior="sample"))
    with pytest.raises(Refused) as refused:
        use(Cache(tmp_path), other)
    message = str(refused.value)
    assert "recipe.fps: found 24.0, wanted 12.0" in message
    assert "recipe.latent.posterior: found 'mean', wanted 'sample'" in message
    assert str(tmp_path) in message and "max_chunks" not in message
    assert read_recipe(Cache(tmp_path)) == RECIPE


def test_equal_recipes_have_no_differences() -> None:
    assert differences(RECIPE, replace(RECIPE)) == []


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe) if field.name != "latent"])
def test_a_difference_names_its_field(field: str) -> None:
    (line,) = differences(RECIPE, changed(field))
    assert line.startswith(f"{field}: found ")


def test_an_edited_recipe_is_refused(tmp_path: Path) -> None:
    bind_recipe(Cache(tmp_path), RECIPE)
    edit(tmp_path, lambda recipe: recipe.update(fps=25.0))
    with pytest.raises(Refused, match=r"recipe\.json: .*edited"):
        read_recipe(Cache(tmp_path))


@pytest.mark.parametrize("change", [lambda recipe: recipe.update(colour="red"), lambda recipe: recipe.pop("fps")])
def test_a_recipe_of_another_version_is_refused(tmp_path: Path, change) -> None:
    bind_recipe(Cache(tmp_path), RECIPE)
    edit(tmp_path, change)
    with pytest.raises(Refused, match=r"recipe\.json"):
        read_recipe(Cache(tmp_path))


def test_a_folder_without_a_recipe_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"recipe\.json: not found.*run `plan` first"):
        read_recipe(Cache(tmp_path))


def test_a_bucket_that_the_latents_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width 100 .*use 96 or 104"):
        replace(RECIPE, buckets=((64, 64), (64, 100)))


NORMALIZED_ANEW = replace(RECIPE, latent=replace(RECIPE.latent, scaling_factor=0.5, shift=(1.0,) * 16))


def test_another_normalization_can_be_converted_and_the_refusal_says_so(tmp_path: Path) -> None:
    bind_recipe(Cache(tmp_path), RECIPE)
    assert convertible_recipe(Cache(tmp_path), NORMALIZED_ANEW) == RECIPE
    with pytest.raises(Refused, match=r"recipe\.latent\.scaling_factor: .*train\.renormalize=true"):
        check_recipe(Cache(tmp_path), NORMALIZED_ANEW)


@pytest.mark.parametrize("other", [changed("fps"), replace(RECIPE, latent=replace(RECIPE.latent, dtype="bfloat16"))])
def test_nothing_else_can_be_converted(tmp_path: Path, other: Recipe) -> None:
    bind_recipe(Cache(tmp_path), RECIPE)
    with pytest.raises(Refused, match="was made by another recipe") as refused:
        convertible_recipe(Cache(tmp_path), other)
    assert "renormalize" not in str(refused.value)


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe) if field.name != "latent"])
def test_caches_mix_where_only_the_cutting_of_clips_differs(tmp_path: Path, field: str) -> None:
    bind_recipe(Cache(tmp_path), changed(field))
    if field in CUTTING:
        assert check_mixable(Cache(tmp_path), RECIPE, renormalize=False) == changed(field)
        return
    for renormalize in (False, True):
        with pytest.raises(Refused, match=rf"cannot be mixed with .*: recipe\.{field}: found [^;]*$") as refused:
            check_mixable(Cache(tmp_path), RECIPE, renormalize)
        assert "renormalize" not in str(refused.value)


def test_caches_of_another_normalization_mix_where_that_is_converted(tmp_path: Path) -> None:
    found = replace(NORMALIZED_ANEW, fps=12.0)
    bind_recipe(Cache(tmp_path), found)
    with pytest.raises(Refused, match=r"recipe\.latent\.scaling_factor: .*set train\.renormalize=true") as refused:
        check_mixable(Cache(tmp_path), RECIPE, renormalize=False)
    assert "fps" not in str(refused.value)
    assert check_mixable(Cache(tmp_path), RECIPE, renormalize=True) == found


def test_sizes_that_only_the_other_vae_divides_are_no_matter(tmp_path: Path) -> None:
    """What is refused is the VAE, by name."""
    coarse = replace(RECIPE, latent=replace(RECIPE.latent, stride=(4, 32, 32)), buckets=((64, 96),))
    bind_recipe(Cache(tmp_path), replace(RECIPE, buckets=((72, 64),)))
    with pytest.raises(Refused, match=r"recipe\.latent\.stride: found \[4, 8, 8\], wanted \[4, 32, 32\]"):
        check_mixable(Cache(tmp_path), coarse, renormalize=True)
