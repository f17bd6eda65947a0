"""References: where they go, and what may change."""

import pytest
import torch

from models.diffusion.conditioning import Reference, place_references
from models.diffusion.rectified_flow import Given


def latents(length: int, value: float) -> torch.Tensor:
    return torch.full((4, length, 2, 3), value)


def placed(*references: Reference, frames: int = 15, **options: int) -> tuple[list[float], list[float]]:
    """One video's references -> the value of each latent frame, and its mask."""
    given = place_references([references], torch.randn(1, 4, frames, 2, 3), **options)
    assert torch.equal(given.latents, given.latents[:, :1, :, :1, :1].expand_as(given.latents))
    return given.latents[0, 0, :, 0, 0].tolist(), given.mask[0].tolist()


def test_first_last_both_and_any() -> None:
    first, last = Reference(latents(1, 7.0)), Reference(latents(1, 9.0), start=-1)
    chunk = Reference(latents(5, 3.0), start=5, change=0.25)
    assert placed(first) == ([7.0] + [0.0] * 14, [0.0] + [1.0] * 14)
    assert placed(last) == ([0.0] * 10 + [9.0] + [0.0] * 4, [1.0] * 10 + [0.0] + [1.0] * 4)
    values, mask = placed(first, last, chunk)
    assert values == [7.0, 0, 0, 0, 0] + [3.0] * 5 + [9.0, 0, 0, 0, 0]
    assert mask == [0.0, 1, 1, 1, 1] + [0.25] * 5 + [0.0, 1, 1, 1, 1]
    assert placed(first, Reference(latents(1, 8.0)))[0][0] == 8.0


@pytest.mark.parametrize(
    ("frames", "starts"),
    [
        (15, [0, 0, 0, 5, 5, 5, 5, 5, 10, 10, 10, 10, 10, 10, 10]),
        (5, [0] * 5),
        (1, [0]),
        (7, [0, 0, 0, 0, 0, 5, 5]),  # the rest of a chunk is not rounded up to, yet can be asked for
    ],
)
def test_references_start_at_chunks(frames: int, starts: list[int]) -> None:
    for asked, start in enumerate(starts):
        for counted in (asked, asked - frames):  # from the start, and from the end
            assert placed(Reference(latents(1, 1.0), start=counted), frames=frames)[1].index(0.0) == start
            assert placed(Reference(latents(1, 1.0), start=counted), frames=frames, align=1)[1].index(0.0) == asked


def test_each_video_has_its_own() -> None:
    noise = torch.randn(3, 4, 5, 2, 3, dtype=torch.float64)
    given = place_references([[], [Reference(latents(5, 2.0))], [Reference(latents(1, 1.0))]], noise)
    assert isinstance(given, Given) and given.latents.dtype == torch.float64 and given.mask.dtype == torch.float32
    assert given.mask.tolist() == [[1.0] * 5, [0.0] * 5, [0.0] + [1.0] * 4]
    assert given.latents[0].eq(0).all() and given.latents[1].eq(2).all()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (Reference(torch.zeros(8, 1, 2, 3)), r"\(8, 1, 2, 3\): the video wants \(4, n, 2, 3\)"),
        (Reference(torch.zeros(4, 1, 3, 2)), r"\(4, 1, 3, 2\): the video wants"),
        (Reference(latents(1, 0.0), start=15), "at latent 15: the video has 15; use -15 to 14"),
        (Reference(latents(1, 0.0), start=-16), "at latent -16"),
        (Reference(latents(6, 0.0), start=-1), "6 latents at 10: the video has 15; shorten"),
        (Reference(latents(1, 0.0), change=1.5), r"change 1.5: it must lie in 0 \(keep\) to 1"),
    ],
)
def test_references_that_do_not_fit(reference: Reference, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        placed(reference)


def test_a_list_for_every_video() -> None:
    with pytest.raises(ValueError, match="references of 1 videos, noise of 2"):
        place_references([[]], torch.zeros(2, 4, 5, 2, 3))
