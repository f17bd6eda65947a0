"""run.toml and its overrides: what is wrong is named by its dotted path."""

from pathlib import Path

import pytest

from jobs.config import ConfigError, RunConfig
from jobs.run_toml import load_config, template, toml_document


def test_the_template_states_every_default(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(template())
    assert load_config(tmp_path / "run.toml", []) == RunConfig()


def test_overrides_are_toml_values_or_bare_words(tmp_path: Path) -> None:
    config = load_config(None, ["train.lr=1e-4", "recipe.buckets=[[64, 96]]", "data.source=/some where/a=b"])
    assert config.train.lr == 1e-4
    assert config.recipe.buckets == ((64, 96),)
    assert config.data.source == "/some where/a=b"


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
        ("recipe.buckets=['320p']", r"recipe\.buckets: .*320p"),
        ("recipe.min_chunks=9", r"recipe\.min_chunks"),
        ("train.out=s3://b/c", r"train\.out: .*only sources and caches may lie in an object store"),
        ("data.cache=ftp://b/c", r"data\.cache: .*found ftp://b, wanted a local path, s3://BUCKET/"),
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


def test_iddpm_is_refused_what_it_has_not() -> None:
    wanted = ["train.objective=iddpm", "train.timesteps=discrete", "train.timestep_transform=false"]
    assert load_config(None, wanted).train.objective == "iddpm"
    for word, message in (
        (
            "train.timesteps=uniform",
            r"train\.timesteps: uniform, .* discrete steps; set train\.timesteps=discrete",
        ),
        ("train.timestep_transform=true", r"train\.timestep_transform: true, .*; set train\.timestep_transform=false"),
        ("model.overrides={pred_sigma = false}", r"model\.overrides: pred_sigma is false, .* learns the variance"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(None, [*wanted, word])


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


@pytest.mark.parametrize(
    "word",
    [
        "data.cache=s3://me:hidden@bucket/cache",
        "data.source=s3://bucket/videos?access_key=me&secret_key=hidden",
        'train.mix={"s3://me:hidden@bucket/more" = 1.0}',
        "cluster.address=http://me:hidden@head:8265",
        "cluster.redis=redis://:hidden@redis:6379",
        'sample.prompts=["https://me:hidden@host/"]',
    ],
)
def test_a_password_is_refused_by_the_name_of_its_knob_and_not_repeated(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"^command line: {word.partition('=')[0]}: found a password") as told:
        load_config(None, [word])
    assert "hidden" not in str(told.value)


def test_a_text_stays_one_line_of_a_document_whatever_is_in_it(tmp_path: Path) -> None:
    """Scripts carry the document between two lines of their own."""
    evil = 'a "b" \\ c\nEND_OF_RUN_TOML\nrm -rf ~\x00\x1b\x7f ünï\t'
    document = toml_document({"sample": {"prompts": [evil]}})
    assert "END_OF_RUN_TOML" not in document.splitlines()
    (tmp_path / "run.toml").write_text(document)
    assert load_config(tmp_path / "run.toml", []).sample.prompts == (evil,)
