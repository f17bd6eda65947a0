"""Attention stays within a frame, but in the block that keeps the mistake of the first release."""

import pytest
import torch
from torch import Tensor, nn

from models.vae.causal_attention import AttnBlock3D, AttnBlock3DFix

ignore_legacy = pytest.mark.filterwarnings("ignore:AttnBlock3D mixes time")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def attend_to_itself(frames: Tensor) -> Tensor:
    """Textbook attention within each frame (b, t, c, places), as queries, keys and values at once."""
    weights = (frames.transpose(2, 3) @ frames / frames.shape[2] ** 0.5).softmax(dim=3)  # (b, t, places, places)
    return frames @ weights.transpose(2, 3)


@ignore_legacy
@torch.no_grad()
def test_attention_is_within_a_frame_and_the_legacy_block_reads_channels_as_frames():
    x = noise(2, 64, 5, 3, 4)
    b, c, t, h, w = x.shape
    frames = x.permute(0, 2, 1, 3, 4)  # (b, t, c, h, w)
    right = attend_to_itself(frames.reshape(b, t, c, h * w)).reshape(frames.shape).permute(0, 2, 1, 3, 4)
    torch.testing.assert_close(AttnBlock3DFix(64).attend(x, x, x), right, atol=1e-6, rtol=0)
    wrong = attend_to_itself(x.reshape(b, t, c, h * w)).reshape(x.shape)  # without moving t: the mistake
    torch.testing.assert_close(AttnBlock3D(64).attend(x, x, x), wrong, atol=1e-6, rtol=0)
    assert (right - wrong).abs().max() > 0.1


@ignore_legacy
@torch.no_grad()
def test_a_frame_does_not_see_another_but_in_the_legacy_block_it_does():
    x = noise(1, 32, 5, 3, 4)
    torch.manual_seed(0)
    right = AttnBlock3DFix(32, norm=lambda channels: nn.Identity())
    legacy = AttnBlock3D(32, norm=lambda channels: nn.Identity())
    legacy.load_state_dict(right.state_dict())
    for frame in range(5):
        other = x.clone()
        other[:, :, frame] *= -1
        rest = [t for t in range(5) if t != frame]
        assert torch.equal(right(x)[:, :, rest], right(other)[:, :, rest])
        assert not torch.equal(right(x)[:, :, frame], right(other)[:, :, frame])
        assert (legacy(x) - legacy(other))[:, :, rest].abs().amax(dim=(0, 1, 3, 4)).min() > 1e-3


@ignore_legacy
@torch.no_grad()
def test_an_image_cannot_tell_the_two_blocks_apart():
    right, legacy = AttnBlock3DFix(32), AttnBlock3D(32)
    legacy.load_state_dict(right.state_dict())
    image = noise(2, 32, 1, 4, 5)
    torch.testing.assert_close(right(image), legacy(image), atol=1e-6, rtol=0)
    assert (right(noise(2, 32, 5, 4, 5)) - legacy(noise(2, 32, 5, 4, 5))).abs().max() > 1e-3


def test_the_legacy_block_warns_and_the_other_does_not(recwarn: pytest.WarningsRecorder):
    AttnBlock3DFix(32)
    assert not recwarn
    with pytest.warns(UserWarning, match="mixes time into channels.*#171.*#257.*AttnBlock3DFix"):
        AttnBlock3D(32)
