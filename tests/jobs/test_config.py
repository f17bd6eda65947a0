"""run.toml and its overrides: what is wrong is named by its dotted path."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config import ConfigError, RunConfig, configured_recipe, load_config, template
from pipeline.recipe import bind_recipe
from tests.checkpoints import publish


def test_the_template_states_every_default(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(template())
    assert load_config(tmp_path / "run.toml", []) == RunConfig()


def test_overrides_are_toml_values_or_bare_words(tmp_path: Path) -> None:
    config = load_config(None, ["train.lr=1e-4", "recipe.buckets=[[64, 96]]", "data.source=/some where/a=b"])
    assert config.train.lr == 1e-4
    assert config.recipe.buckets == ((64, 96),)
    assert config.data.source == "/some where/a=b"


def test_relative_paths_start_where_the_command_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(None, ["data.source=mine"]).data.source == str(tmp_path / "mine")
    assert load_config(None, []).data.cache == tmp_path / "cache"


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().train.steps = 3  # pyright: ignore


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("recipe.fpz=3", r"recipe\.fpz: unknown key; known here: vae, .*fps"),
        ("nosuch.key=3", r"nosuch: unknown key; known here: data, recipe"),
        ("recipe.fps=0", r"recipe\.fps: found 0: .*greater than 0"),
        ("train.steps=many", r"train\.steps: found 'many'"),
        ("recipe.chunk_frames=16", r"16 frames do not fit dct: .*17 = 1\+4\+4\+4\+4"),
        ("recipe.chunk_frames=18", r"18 frames do not fit dct"),
        ("recipe.buckets=[[60, 64]]", r"recipe\.buckets: height 60 is not a multiple of 8.*use 56 or 64"),
        ("recipe.buckets=[]", r"recipe\.buckets: found \[\]"),
        ("recipe.vae=nosuch", r"no VAE is called 'nosuch'.*dct"),
        ("recipe.chunk_frames=33", r"train\.timestep_transform"),
        ("text.encoder=nosuch", r"text\.encoder: found 'nosuch': not known; known: bytes"),
        ("train.masks={sideways = 0.1}", r"train\.masks: .*masks sideways: not known; known are identity"),
        ("train.masks={random = 0.7, image_head = 0.7}", r"train\.masks: .*sum at most 1"),
        ("train.filter=fps = 24", r"train\.filter: found 'fps = 24': not an expression"),
        ("recipe.filter=open('x') == 1", r"recipe\.filter: .*is not understood; known are names"),
        ("model.name=nosuch", r"model\.name: found 'nosuch': not known; known: stdit3-xl/2"),
        ("model.overrides={dept = 3}", r"model\.overrides: .*dept.* fields of stdit3-tiny: hidden_size, depth"),
        ("train.steps", r"overrides look like section\.key=value"),
        ("steps=3", r"overrides look like section\.key=value"),
    ],
)
def test_what_is_wrong_is_named(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [word])


def test_every_wrong_key_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"recipe\.fps.*train\.steps"):
        load_config(None, ["recipe.fps=0", "train.steps=0"])


def test_a_missing_or_broken_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not found; write one with `latentmill init`"):
        load_config(tmp_path / "none.toml", [])
    (tmp_path / "bad.toml").write_text("[train\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "bad.toml", [])
    (tmp_path / "latin.toml").write_bytes(b"[data]\nsource = 'caf\xe9'\n")
    with pytest.raises(ConfigError, match=r"latin\.toml: not valid TOML"):
        load_config(tmp_path / "latin.toml", [])
    (tmp_path / "flat.toml").write_text("train = 3\n")
    with pytest.raises(ConfigError, match=r"train: found 3, wanted a section"):
        load_config(tmp_path / "flat.toml", ["train.steps=4"])


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a small VAE of the family sd."""
    knobs = publish("sd", tmp_path_factory.mktemp("sd"))
    return [*(f"{name}={value}" for name, value in knobs.items()), "train.timestep_transform=false"]


def test_what_the_run_says_of_normalization_goes_into_the_recipe(sd: list[str], tmp_path: Path) -> None:
    places = [*sd, f"data.cache={tmp_path}"]
    plain = configured_recipe(load_config(None, places)).latent
    assert (plain.vae, plain.scaling_factor, plain.posterior, plain.dtype) == ("sd", 0.18215, "sample", "float32")
    asked = [
        "recipe.scaling_factor=0.5",
        "recipe.shift=[1,2,3,4]",
        "recipe.scale=[4,3,2,1]",
        "recipe.posterior=moments",
    ]
    latent = configured_recipe(load_config(None, [*places, *asked])).latent
    assert (latent.scaling_factor, latent.shift, latent.scale) == (0.5, (1, 2, 3, 4), (4, 3, 2, 1))
    assert latent.posterior == "moments" and latent.weights_sha256 == plain.weights_sha256


def test_the_dtype_of_a_cache_is_that_of_its_plan(sd: list[str], tmp_path: Path) -> None:
    """Left open, it must not change with the machine that reads the configuration."""
    config = load_config(None, [*sd, f"data.cache={tmp_path}"])
    recipe = configured_recipe(config)
    bind_recipe(tmp_path, replace(recipe, latent=replace(recipe.latent, dtype="bfloat16")))
    assert configured_recipe(config).latent.dtype == "bfloat16"
    asked = load_config(None, [*sd, f"data.cache={tmp_path}", "recipe.vae_dtype=float32"])
    assert configured_recipe(asked) == recipe


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe.vae=sd"], "sd needs its weights; give a folder or a hub id"),
        (["recipe.vae=sd", "recipe.vae_path=./nothing"], "nothing: no such file or folder"),
        (["recipe.vae=diffusers"], "diffusers wants one folder or hub id"),
        (["recipe.shift=[1,2]"], "16 channels but 2 shifts"),
        (["recipe.scaling_factor=0"], r"recipe\.scaling_factor: found 0"),
        (["recipe.posterior=maximum"], r"recipe\.posterior: found 'maximum'"),
        (["recipe.vae_dtype=int8"], r"recipe\.vae_dtype: found 'int8'"),
    ],
)
def test_a_vae_that_cannot_be_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, words)


def test_the_timestep_transform_wants_chunks_of_five_latents(sd: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"those of sd have 17 and 17; set train\.timestep_transform=false"):
        load_config(None, sd[:-1])


def test_a_vae_in_a_folder_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish("AutoencoderKLWan", tmp_path / "wan")
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["recipe.vae=diffusers:wan"])
    assert config.recipe.vae == f"diffusers:{tmp_path / 'wan'}"
    config = load_config(None, ["recipe.vae=diffusers", "recipe.vae_path=wan"])
    assert config.recipe.vae_path == str(tmp_path / "wan")
