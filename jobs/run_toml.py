"""run.toml and the overrides of the command line -> the run's configuration; and back, as a template."""

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

from jobs.config import ConfigError, RunConfig
from jobs.configured import describe_asked_vae
from models.diffusion.rectified_flow import CHUNK_FRAMES, CHUNK_LATENTS
from models.dit import DITS
from pipeline.location import holds_secret


def load_config(path: Path | None, overrides: list[str]) -> RunConfig:
    """run.toml and `section.key=value` words -> the run's configuration; ConfigError with the dotted path."""
    document: dict[str, Any] = {}
    if path is not None:
        if not path.is_file():
            raise ConfigError(f"{path}: not found; write one with `latentmill init`, or name another run.toml")
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for word in overrides:
        _override(document, word)
    return make_config(document, str(path or "command line"))


def make_config(document: dict[str, Any], origin: str) -> RunConfig:
    """A parsed document -> configuration; ConfigError lists every wrong key."""
    _refuse_secrets(document, origin)
    try:
        config = RunConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(_explain(dict(one)) for one in error.errors())) from error
    _check_across_sections(config)
    return config


def _refuse_secrets(part: Any, origin: str, *names: str) -> None:
    """Configurations are copied into checkpoints, jobs and events: no password may be in them. It is not repeated."""
    if isinstance(part, str) and holds_secret(part):
        told = "found a password in an address; give it by the environment of the run instead"
        raise ConfigError(f"{origin}: {'.'.join(names)}: {told}")
    for one in part if isinstance(part, (dict, list, tuple)) else ():
        _refuse_secrets(one, origin, *names)
    for name, one in part.items() if isinstance(part, dict) else ():
        _refuse_secrets(one, origin, *names, str(name))


def _check_across_sections(config: RunConfig) -> None:
    """Tell what does not fit together here, before anything runs."""
    description = describe_asked_vae(config)  # the cache, and what opens it, may be on other machines only
    try:
        replace(DITS[config.model.name], **config.model.overrides)
    except (TypeError, ValueError) as error:
        known = ", ".join(field.name for field in fields(DITS[config.model.name]))
        raise ConfigError(f"model.overrides: {error}; fields of {config.model.name}: {known}") from error
    _check_objective(config)
    _check_zero(config)
    if config.recipe.min_chunks > config.recipe.max_chunks:
        raise ConfigError(
            f"recipe.min_chunks: {config.recipe.min_chunks} is more than recipe.max_chunks, "
            f"{config.recipe.max_chunks}: no clip could be made; lower it, or raise recipe.max_chunks"
        )
    spec = description.spec
    if config.train.timestep_transform and (spec.chunk_frames, spec.chunk_latents) != (CHUNK_FRAMES, CHUNK_LATENTS):
        raise ConfigError(
            f"train.timestep_transform: Open-Sora's formula counts chunks of {CHUNK_FRAMES} frames and {CHUNK_LATENTS} "
            f"latents, those of {spec.vae} have {spec.chunk_frames} and {spec.chunk_latents}; "
            f"set train.timestep_transform=false"
        )


def _check_zero(config: RunConfig) -> None:
    if config.train.zero == "zero3-nvme" and config.train.nvme is None:
        raise ConfigError("train.nvme: not given, and train.zero=zero3-nvme needs it; name a folder on a local disk")
    if (config.train.zero, config.train.precision) == ("zero0", "fp16"):
        raise ConfigError("train.zero: zero0 does not scale the loss as train.precision=fp16 needs it; use zero1")


def _check_objective(config: RunConfig) -> None:
    """IDDPM has 1000 steps, the same for every size, and learns a variance."""
    if config.train.objective != "iddpm":
        return
    if config.train.timesteps != "discrete":
        raise ConfigError(
            f"train.timesteps: {config.train.timesteps}, and train.objective=iddpm has discrete steps; "
            f"set train.timesteps=discrete"
        )
    if config.train.timestep_transform:
        raise ConfigError(
            "train.timestep_transform: true, and train.objective=iddpm does not shift its steps; "
            "set train.timestep_transform=false"
        )
    if not config.model.overrides.get("pred_sigma", DITS[config.model.name].pred_sigma):
        raise ConfigError(
            "model.overrides: pred_sigma is false, and train.objective=iddpm learns the variance; leave it true"
        )


def _explain(error: dict[str, Any]) -> str:
    dotted = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section = error["loc"][0] if len(error["loc"]) > 1 else None
        model = RunConfig.model_fields[str(section)].annotation if section else RunConfig
        return f"{dotted}: unknown key; known here: {', '.join(getattr(model, 'model_fields', {}))}"
    return f"{dotted}: found {error['input']!r}: {error['msg'].removeprefix('Value error, ')}"


def _override(document: dict[str, Any], word: str) -> None:
    """`train.lr=1e-4` into the document. The value is TOML, or a bare string."""
    dotted, equals, text = word.partition("=")
    section, dot, key = dotted.strip().partition(".")
    if not (equals and dot and key):
        raise ConfigError(f"{word!r}: not understood; overrides look like section.key=value, as in train.steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if not isinstance(document.setdefault(section, {}), dict):
        raise ConfigError(f"{section}: found {document[section]!r}, wanted a section of keys, as in [{section}]")
    document[section][key] = value


def template() -> str:
    """A run.toml with every knob at its default, explained."""
    lines = ["# Every knob of latentmill, at its default. Delete what you do not change.", ""]
    for name, field in RunConfig.model_fields.items():
        lines.append(f"[{name}]")
        section: Any = field.annotation
        for key, knob in section.model_fields.items():
            value = _toml(knob.default)
            comment = f"  # {' '.join(knob.description.split())}" if knob.description else ""
            lines.append(f"{key} = {value}{comment}" if value else f"# {key} = ...{comment}")
        lines.append("")
    return "\n".join(lines)


def toml_document(sections: dict[str, dict[str, Any]]) -> str:
    """Sections of knobs as a TOML document."""
    blocks = [
        "\n".join([f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in knobs.items())])
        for name, knobs in sections.items()
    ]
    return "\n\n".join(blocks) + "\n"


def _toml(value: Any) -> str:
    """A default as a TOML value; empty for None, which TOML does not have."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(one)}" for key, one in value.items()) + "}"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # of one line, whatever is in it
