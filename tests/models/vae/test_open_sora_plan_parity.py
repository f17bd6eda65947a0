"""CausalVAE against outputs recorded from Open-Sora-Plan v1.2.0 (float32, CPU, small random weights)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.vae import load_vae
from models.vae.causal_attention import AttnBlock3D, AttnBlock3DFix
from models.vae.interface import VideoVAE
from tests.models.vae.test_open_sora_plan import V1_0, V1_1, V1_2, publish

RECORDING = Path(__file__).resolve().parents[3] / "../shared/parity/open_sora_plan_v1_2.pt"
pytestmark = [
    pytest.mark.skipif(not RECORDING.exists(), reason="recordings not here"),
    pytest.mark.filterwarnings("ignore:AttnBlock3D mixes time"),
]
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}
# The recorded pixels, of about 4 at most, are themselves 1.2e-5 off the same network in float64.
CLOSE_PIXELS: dict[str, Any] = {"atol": 2e-5, "rtol": 0.0}
# The recorded configs name what differs from the defaults of the code, which are those of the release they are like.
RELEASES = {"release_json": V1_0, "mixed_2d3d_res": V1_1, "joint_spacetime": V1_2}
BLOCKS = {"AttnBlock3D": AttnBlock3D, "AttnBlock3DFix": AttnBlock3DFix}
CASES = [f"{layout}/{attention}" for layout in RELEASES for attention in BLOCKS]


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    return torch.load(RECORDING, weights_only=True)


@pytest.fixture
def vae(recording: dict[str, Any], case: str, tmp_path: Path) -> VideoVAE:
    recorded = recording["cases"][case]
    config = {**RELEASES[recorded["layout"]], **recorded["config"]}
    return load_vae("open-sora-plan", publish(tmp_path, config, recording["state_dicts"][recorded["layout"]]))


@pytest.mark.parametrize("frames", [17, 9, 1])
@pytest.mark.parametrize("case", CASES)
def test_moments_and_pixels_are_the_recorded_ones(recording: dict[str, Any], vae: VideoVAE, case: str, frames: int):
    recorded = recording["cases"][case]["runs"][f"t{frames}"]
    mean, std = vae.raw_moments(recording["video"][:, :, :frames])
    torch.testing.assert_close(mean, recorded["mean"], **CLOSE)
    torch.testing.assert_close(std, torch.exp(recorded["logvar"] / 2), **CLOSE)
    torch.testing.assert_close(2 * std.log(), recorded["logvar"], **CLOSE)
    torch.testing.assert_close(vae.raw_decode(recorded["mean"], frames), recorded["decoded"], **CLOSE_PIXELS)


def first_latent_moves(vae: VideoVAE, video: Tensor) -> float:
    """How far the first latent moves when the last of 17 frames is turned over."""
    turned = torch.cat([video[:, :, :16], -video[:, :, 16:]], dim=2)
    return (vae.raw_moments(video)[0] - vae.raw_moments(turned)[0])[:, :, 0].abs().max().item()


@pytest.mark.parametrize("case", CASES)
def test_the_last_frame_reaches_the_first_latent_as_recorded(recording: dict[str, Any], vae: VideoVAE, case: str):
    """Through the norms in every layout; without them, only where the legacy attention lets it."""
    recorded = recording["cases"][case]["probes"]
    assert first_latent_moves(vae, recording["video"]) == pytest.approx(recorded["latent0_delta"], abs=1e-5)
    for module in list(vae.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    without_norms = first_latent_moves(vae, recording["video"])
    assert without_norms == pytest.approx(recorded["latent0_delta_no_norm"], abs=1e-5)
    assert (without_norms == 0) == case.endswith("Fix")


@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_attention_blocks_give_the_recorded_outputs(recording: dict[str, Any], name: str):
    recorded = recording["attention"]
    block = BLOCKS[name](recorded["channels"])
    block.load_state_dict(recorded["state_dict"])
    for kind, x in recorded["inputs"].items():
        torch.testing.assert_close(block(x), recorded[name][kind], **CLOSE)
