"""Random changes of training images: what moves, what goes, and what stays."""

import math
from typing import Any

import pytest
import torch

from hwspec.errors import DataError
from runtime.augment_torch import Augmentation, augment


def test_crops_and_flips_move_whole_pixels() -> None:
    images = torch.arange(2 * 3 * 6 * 6, dtype=torch.float32).reshape(2, 3, 6, 6) + 1
    found = augment(images, Augmentation(crop=2), torch.Generator().manual_seed(3))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    windows = padded.unfold(2, 6, 1).unfold(3, 6, 1)
    for number in range(2):
        assert (windows[number] == found[number][:, None, None]).all(dim=(0, 3, 4)).any()
    mirrored = augment(images.repeat(20, 1, 1, 1), Augmentation(flip=True), torch.Generator().manual_seed(3))
    same = (mirrored == images.repeat(20, 1, 1, 1)).all(dim=(1, 2, 3))
    turned = (mirrored == images.flip(3).repeat(20, 1, 1, 1)).all(dim=(1, 2, 3))
    assert (same ^ turned).all()
    assert 5 < same.sum() < 35


def test_a_square_of_each_image_is_erased() -> None:
    """Whole where its centre is far from the edges, cut off where it is not; the rest of the image stays."""
    images = torch.ones(200, 3, 10, 12)
    found = augment(images, Augmentation(erase=4), torch.Generator().manual_seed(3))
    gone = found == 0
    assert (gone | (found == 1)).all()
    assert (gone == gone[:, :1]).all()
    for rows, columns in ((gone[:, 0].any(2), gone[:, 0].any(1)), (gone[:, 0].any(1), gone[:, 0].any(2))):
        assert rows.sum(1).max() == 4
        assert rows.sum(1).min() == 2
        assert (gone[:, 0].sum((1, 2)) == rows.sum(1) * columns.sum(1)).all()
    assert gone[:, 0].any(0).all()
    assert torch.equal(images, torch.ones(200, 3, 10, 12))


WRONG: dict[str, tuple[object, ...]] = {
    "shift": (-1.0, math.nan, math.inf, 1e30, "2", True),
    "rotate": (-1.0, 181.0, math.nan),
    "zoom": (-0.1, 1.0, 5.0, math.nan),
    "crop": (-2, 1.5, True),
    "erase": (-1, 2.0),
    "flip": (1,),
}


@pytest.mark.parametrize("name", WRONG)
def test_changes_that_are_none_are_refused(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(DataError, match=f"augmentation {name} must be"):
            Augmentation(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"shift": 8.0}, {"crop": 8}, {"erase": 9}], ids=str)
def test_changes_that_leave_nothing_of_an_image_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"must be at most [78] pixels for the images of input 'x'"):
        Augmentation(**change).check("x", (5, 3, 8, 12))
    Augmentation(**{name: value - 1 for name, value in change.items()}).check("x", (5, 3, 8, 12))


def test_augmentation_without_change_gives_the_images() -> None:
    images = torch.rand(5, 1, 8, 8)
    still = augment(images, Augmentation(shift=1e-9), torch.Generator().manual_seed(0))
    torch.testing.assert_close(still, images, rtol=0, atol=1e-5)
