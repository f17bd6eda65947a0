"""The Haar transforms of WF-VAE have the originals' bands, order and length, and their inverses give a video back."""

import pytest
import torch
from torch import Tensor

from models.vae.haar import filters_2d, filters_3d, haar_2d, haar_3d, inverse_haar_2d, inverse_haar_3d


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_filters_are_orthogonal_and_as_long_as_the_originals_wrote_them():
    rows = filters_3d(torch.zeros(1)).reshape(8, 8)
    torch.testing.assert_close(rows @ rows.T, torch.eye(8) * 8 * 0.3536**2)
    rows = filters_2d(torch.zeros(1)).reshape(4, 4)
    torch.testing.assert_close(rows @ rows.T, torch.eye(4))


def test_bands_are_in_the_order_the_networks_were_trained_with():
    """The signs of each 2x2x2 filter, and of each 2x2 one, in reading order."""
    signs = ["++++++++", "+-+-+-+-", "++--++--", "+--++--+", "++++----", "+-+--+-+", "++----++", "+--+-++-"]
    found = filters_3d(torch.zeros(1)).reshape(8, 8) / 0.3536
    torch.testing.assert_close(found, torch.tensor([[1.0 if sign == "+" else -1.0 for sign in row] for row in signs]))
    found = filters_2d(torch.zeros(1)).reshape(4, 4) / 0.5
    signs = ["++++", "++--", "+-+-", "+--+"]
    torch.testing.assert_close(found, torch.tensor([[1.0 if sign == "+" else -1.0 for sign in row] for row in signs]))


@pytest.mark.parametrize(("frames", "steps"), [(1, 1), (5, 3), (17, 9)])
def test_the_inverse_gives_a_video_back(frames: int, steps: int):
    x = noise(2, 3, frames, 8, 12)
    bands = haar_3d(x)
    assert bands.shape == (2, 24, steps, 4, 6)
    torch.testing.assert_close(inverse_haar_3d(bands), x * 8 * 0.3536**2, atol=1e-5, rtol=0)
    assert haar_2d(x).shape == (2, 12, frames, 4, 6)
    torch.testing.assert_close(inverse_haar_2d(haar_2d(x)), x, atol=1e-5, rtol=0)


def test_averages_come_first_and_colour_by_colour():
    red = torch.zeros(1, 3, 5, 4, 4)
    red[:, 0] = 1
    for bands, height in ((haar_3d(red), 8 * 0.3536), (haar_2d(red), 2.0)):
        torch.testing.assert_close(bands[:, 0], torch.full_like(bands[:, 0], height))
        assert bands[:, 1:].abs().max() < 1e-6
