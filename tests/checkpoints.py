"""Small models with random weights, in folders as the originals publish them: for tests that want any one of a kind."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from models.vae.causal_vae import CausalVAE, CausalVAEConfig
from models.vae.kl import FrameAutoencoder, KLConfig
from models.vae.temporal import TemporalConfig, TemporalVAE


def publish_kl(folder: Path, width: int) -> dict[str, Any]:
    """Stable Diffusion's: three halvings, as its own but for the channels."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    AutoencoderKL(**asdict(kl_config(width))).save_pretrained(folder)
    return {"recipe.vae": "sd", "recipe.vae_path": str(folder)}


def publish_open_sora(folder: Path, width: int) -> dict[str, Any]:
    """Open-Sora v1.2: both parts and the normalization in one file."""
    spatial, temporal = kl_config(width), TemporalConfig(filters=width, num_res_blocks=1, num_groups=4)
    parts = nn.ModuleDict({"spatial_vae": FrameAutoencoder(spatial), "temporal_vae": TemporalVAE(temporal)})
    numbers = {"shift": torch.tensor([-0.1, 0.34, 0.27, 0.98]), "scale": torch.tensor([3.85, 2.32, 2.33, 3.06])}
    normalization = {name: values[None, :, None, None, None] for name, values in numbers.items()}
    save_file({**parts.state_dict(), **normalization}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"spatial": asdict(spatial), "temporal": asdict(temporal)}))
    return {"recipe.vae": "open-sora-v1.2", "recipe.vae_path": str(folder)}


def publish_open_sora_plan(folder: Path, width: int) -> dict[str, Any]:
    """Open-Sora-Plan v1.2: space and time halved together."""
    config = CausalVAEConfig(
        hidden_size=width,
        hidden_size_mult=(1, 1, 1, 1),
        num_res_blocks=1,
        z_channels=4,
        embed_dim=4,
        encoder_conv_in="Conv2d",
        encoder_conv_out="CausalConv3d",
        encoder_attention="AttnBlock3DFix",
        encoder_mid_resnet="ResnetBlock3D",
        encoder_resnet_blocks=("ResnetBlock2D", "ResnetBlock2D", "ResnetBlock3D", "ResnetBlock3D"),
        encoder_spatial_downsample=("Downsample", *("Spatial2xTime2x3DDownsample",) * 2, ""),
        encoder_temporal_downsample=("",) * 4,
        decoder_conv_in="CausalConv3d",
        decoder_conv_out="CausalConv3d",
        decoder_attention="AttnBlock3DFix",
        decoder_mid_resnet="ResnetBlock3D",
        decoder_resnet_blocks=("ResnetBlock3D",) * 4,
        decoder_spatial_upsample=("", "SpatialUpsample2x", *("Spatial2xTime2x3DUpsample",) * 2),
        decoder_temporal_upsample=("",) * 4,
    )
    save_file(CausalVAE(config).state_dict(), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "CausalVAEModel", **asdict(config)}))
    return {"recipe.vae": "open-sora-plan", "recipe.vae_path": str(folder)}


def publish_diffusers(name: str, folder: Path, width: int) -> dict[str, Any]:
    """A class of diffusers, as diffusers saves it."""
    import diffusers

    getattr(diffusers, name)(**DIFFUSERS[name](width)).save_pretrained(folder)
    return {"recipe.vae": f"diffusers:{folder}"}


def kl_config(width: int) -> KLConfig:
    return KLConfig(
        block_out_channels=(width, width, 2 * width, 2 * width),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    )


NUMBERS = {"latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [0.5, 1.5, 2.0, 0.7]}
DIFFUSERS: dict[str, Callable[[int], dict[str, Any]]] = {  # class -> its settings at a width
    "AutoencoderKLWan": lambda width: {
        **{"base_dim": width, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, **NUMBERS}
    },
    "AutoencoderKLHunyuanVideo": lambda width: {
        **{"block_out_channels": [width] * 4, "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    },
    "AutoencoderKLCogVideoX": lambda width: {
        **{"block_out_channels": [width] * 4, "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    },
    "AutoencoderKLLTXVideo": lambda width: {
        **{"block_out_channels": [width] * 4, "decoder_block_out_channels": [width] * 4, "latent_channels": 4},
        **{"layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 5},
    },
    "AutoencoderKLMochi": lambda width: {
        **{"encoder_block_out_channels": [width] * 4, "decoder_block_out_channels": [width] * 4},
        **{"layers_per_block": [1] * 5, "latent_channels": 4, **NUMBERS},
    },
}
FAMILIES: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "sd": publish_kl,
    "open-sora-v1.2": publish_open_sora,
    "open-sora-plan": publish_open_sora_plan,
    **{name: partial(publish_diffusers, name) for name in DIFFUSERS},
}


def publish(family: str, folder: Path, width: int = 32) -> dict[str, Any]:
    """A VAE of `width` channels, a multiple of 32, in its first level -> the knobs of a run that uses it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    return FAMILIES[family](folder, width)


SENTENCE = "a the red green blue circle square moves slowly left right across white field person dog runs beach"
EXTRA_IDS = [f"<extra_id_{number}>" for number in range(100)]
IDS: dict[str, Any] = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}  # as T5's
SPECIAL = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "additional_special_tokens": EXTRA_IDS}
TINY: dict[str, Any] = {"vocab_size": 256, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}


def publish_t5(folder: Path) -> Path:
    """A small T5, decoder and all, and its tokenizer, as DeepFloyd/t5-v1_1-xxl or google/t5-v1_1 have it."""
    import sentencepiece
    import transformers

    torch.manual_seed(0)
    config = transformers.T5Config(**TINY, feed_forward_proj="gated-gelu", initializer_factor=2.0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    corpus = folder / "corpus.txt"
    words = SENTENCE.split()
    corpus.write_text("\n".join(" ".join(words[place:] + words[:place]) for place in range(len(words))))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=100,
        hard_vocab_limit=False,
        minloglevel=2,
        **IDS,
    )
    corpus.unlink()
    (folder / "spiece.vocab").unlink()
    settings = {**SPECIAL, "extra_ids": 100, "tokenizer_class": "T5Tokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL))
    return folder
