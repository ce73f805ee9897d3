# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Views of support images, and anomalies made from them."""

import torch

from anomalib_fewshot.models.components import (
    NUM_FIXED_VIEWS,
    SupportAugmentation,
    cut_paste,
    fixed_views,
    rotated_views,
    symmetry,
)

HALF = [0.5] * 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 48, generator=generator(9)) * 2 - 1


def test_the_generator_alone_decides_the_views() -> None:
    augmentation = SupportAugmentation(HALF, HALF)
    torch.manual_seed(1)
    first = augmentation(images(), generator())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    torch.testing.assert_close(augmentation(images(), generator()), first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(augmentation(images(), generator(1)), first)


def test_every_image_has_a_view_of_its_own() -> None:
    same = images()[:1].repeat(4, 1, 1, 1)
    views = SupportAugmentation(HALF, HALF)(same, generator())
    assert all(not torch.equal(views[0], view) for view in views[1:])


def test_views_are_similar_to_the_image() -> None:
    smooth = torch.linspace(-0.8, 0.8, 48).expand(3, 3, 32, 48)
    assert 0 < (SupportAugmentation(HALF, HALF)(smooth, generator()) - smooth).abs().mean() < 0.15


def test_normalisation_is_undone_and_done_again() -> None:
    """A uniform gray image stays nearly uniform for each normalization."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    grey = ((0.5 - torch.tensor(mean)) / torch.tensor(std)).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    view = SupportAugmentation(mean, std)(grey, generator())
    back = view * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(1, 3, 1, 1)
    assert (back - 0.5).abs().max() < 0.08


def test_cut_paste_changes_what_the_mask_says_and_nothing_else() -> None:
    clean = images()
    anomalous, mask = cut_paste(clean, generator())
    assert mask.shape == (3, 32, 48)
    outside = ~mask[:, None].expand_as(clean)
    assert torch.equal(anomalous[outside], clean[outside])
    assert torch.equal(clean, images())
    for image, result, pasted in zip(clean, anomalous, mask, strict=True):
        assert 0.01 < pasted.float().mean() < 0.17
        rows, columns = pasted.any(1).nonzero().flatten(), pasted.any(0).nonzero().flatten()
        patch = result[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert patch[0].numel() == pasted.sum()
        windows = image.unfold(1, patch.shape[1], 1).unfold(2, patch.shape[2], 1)  # (C, y, x, h, w)
        assert (windows == patch[:, None, None]).all((0, 3, 4)).any()  # it is a piece of the image


def test_cut_paste_follows_the_generator() -> None:
    assert torch.equal(cut_paste(images(), generator())[0], cut_paste(images(), generator())[0])
    assert not torch.equal(cut_paste(images(), generator())[1], cut_paste(images(), generator(1))[1])


def fixed(batch: torch.Tensor) -> list[torch.Tensor]:
    return list(fixed_views(batch, HALF, HALF))


def test_fixed_views_are_22_and_the_first_is_the_image_itself() -> None:
    views = fixed(images())
    assert len(views) == NUM_FIXED_VIEWS == 22
    assert torch.equal(views[0], images())
    assert all(view.shape == (3, 3, 32, 48) and view.isfinite().all() for view in views)
    assert all(not torch.allclose(one, two) for i, one in enumerate(views) for two in views[:i])


def test_fixed_views_are_the_same_every_time_and_in_any_batch() -> None:
    before = torch.get_rng_state()
    for view, again, single in zip(fixed(images()), fixed(images()), fixed(images()[1:2]), strict=True):
        assert torch.equal(view, again)
        torch.testing.assert_close(view[1:2], single)
    assert torch.equal(torch.get_rng_state(), before)


def test_fixed_mirror_image_and_quarter_turns_are_exact() -> None:
    square = images()[..., :32]
    views = fixed(square)
    assert torch.equal(views[17], square.flip(-1))
    for turns in (1, 2, 3):
        assert torch.equal(views[18 + turns], square.rot90(turns, (-2, -1)))
    assert torch.equal(fixed(images())[20], images().rot90(2, (-2, -1)))  # of an image that is not square too


def test_fixed_rotations_and_moves() -> None:
    """Positions of a dot: 12 pixels beside the center, rotated by 45 degrees; shifted by a tenth of the sides."""
    image = torch.zeros(1, 3, 41, 81)
    image[..., 20, 52] = 1
    views = fixed(image)
    for view, sign in ((views[1], -1), (views[8], 1)):
        top, left = divmod(int(view[0, 0].argmax()), 81)
        assert (top, left) == (20 - sign * 8, 48)
    places = {divmod(int(view[0, 0].argmax()), 81) for view in views[9:13]}
    assert places == {(20 + 4 * y, 52 + 8 * x) for y in (1, -1) for x in (1, -1)}


def test_fixed_grey_view_is_grey_in_colours_as_they_were() -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    grey = list(fixed_views(images(), mean, std))[18]
    colours = grey * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    torch.testing.assert_close(colours[:, 0], colours[:, 1])
    torch.testing.assert_close(colours[:, 0], colours[:, 2])


def test_symmetries_of_a_square() -> None:
    """Eight different ones, the image first, four of them mirrored; all others start again."""
    square = images()[..., :32]
    views = [symmetry(square, number) for number in range(8)]
    assert torch.equal(views[0], square)
    assert torch.equal(views[3], square.rot90(-1, (-2, -1)))
    assert torch.equal(views[6], square.flip(-2))
    assert all(not torch.equal(one, two) for i, one in enumerate(views) for two in views[:i])
    assert torch.equal(symmetry(square, 13), views[5])
    assert all(symmetry(images(), number).shape == images().shape for number in range(8))


def test_rotated_views_are_in_equal_steps() -> None:
    square = images()[..., :32]
    views = list(rotated_views(square, 4))
    assert len(views) == 4
    for turns, view in enumerate(views):
        torch.testing.assert_close(view, square.rot90(turns, (-2, -1)), rtol=1e-4, atol=1e-4)
    assert list(rotated_views(square, 0)) == []
