# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Spatial transformers: networks that predict an affine transform of a feature map and apply it."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.errors import ArgumentError

_PARAMETERS = {"affine": 6, "translation": 2, "rotation": 1, "scale": 2, "shear": 2}
MODES = (
    *_PARAMETERS,
    "rotation_scale",
    "translation_scale",
    "rotation_translation",
    "rotation_translation_scale",
)


def transform_matrix(parameters: torch.Tensor, mode: str, aspect: float = 1.0) -> torch.Tensor:
    """Return the affine transforms for a batch of parameters. Zero parameters give the identity.

    The parameters of each part are:

    - rotation: angle in radians
    - scale: logarithms of the two scale factors
    - shear: inverse hyperbolic tangents of the two off-diagonal elements
    - translation: offsets in units of half the map size
    - affine: six values that are added to the identity

    A combination is the product of its parts in the order of its name, such as R S for ``"rotation_scale"``. All modes
    except ``"affine"`` are invertible.

    Args:
        parameters (torch.Tensor): Parameters, shape ``(B, M)``, in the order of the mode name.
        mode (str): One of ``MODES``.
        aspect (float): Ratio of height to width of the map. It makes rotations exact on maps that are not square.
            Defaults to ``1.0``.

    Returns:
        torch.Tensor: Matrices for ``torch.nn.functional.affine_grid``, shape ``(B, 2, 3)``.

    Example:
        >>> transform_matrix(torch.tensor([[0.0, 0.5]]), "translation")
        tensor([[[1.0000, 0.0000, 0.0000],
                 [0.0000, 1.0000, 0.5000]]])
    """
    one, zero = torch.ones_like(parameters[:, 0]), torch.zeros_like(parameters[:, 0])
    matrix = _matrix(one, zero, zero, one)
    if mode == "affine":
        return matrix + parameters.unflatten(1, (2, 3))
    values = iter(parameters.unbind(1))
    for part in mode.split("_"):
        if part == "rotation":
            angle = next(values)
            sine = angle.sin()
            factor = _matrix(angle.cos(), -sine * aspect, sine / aspect, angle.cos())
        elif part == "scale":
            factor = _matrix(next(values).exp(), zero, zero, next(values).exp())
        elif part == "shear":
            factor = _matrix(one, next(values).tanh(), next(values).tanh(), one)
        else:
            factor = _matrix(one, zero, zero, one, next(values), next(values))
        matrix = compose(matrix, factor) if part != "translation" else matrix + F.pad(factor[..., 2:], (2, 0))
    return matrix


def compose(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """Return the transform x -> outer(inner(x)), all of shape ``(B, 2, 3)``."""
    # Not a matrix product, because autocast would compute it in half precision.
    product = (outer[:, :, :2, None] * inner[:, None]).sum(2)  # (B, 2, 2, 1) * (B, 1, 2, 3) -> (B, 2, 3)
    return product + F.pad(outer[..., 2:], (2, 0))


def invert(matrix: torch.Tensor, min_determinant: float = 1e-3) -> torch.Tensor:
    """Return the closed-form inverse of affine transforms.

    Args:
        matrix (torch.Tensor): Transforms, shape ``(B, 2, 3)``.
        min_determinant (float): Minimum absolute determinant. It keeps the result of singular transforms finite.
            Defaults to ``1e-3``.

    Returns:
        torch.Tensor: Inverses, shape ``(B, 2, 3)``.

    Example:
        >>> invert(torch.tensor([[[2.0, 0.0, 1.0], [0.0, 4.0, 0.0]]]))
        tensor([[[ 0.5000, -0.0000, -0.5000],
                 [-0.0000,  0.2500, -0.0000]]])
    """
    a, b, x = matrix[:, 0].unbind(-1)
    c, d, y = matrix[:, 1].unbind(-1)
    determinant = a * d - b * c
    sign = torch.where(determinant < 0, -1.0, 1.0)
    determinant = sign * determinant.abs().clamp_min(min_determinant)
    a, b, c, d = d / determinant, -b / determinant, -c / determinant, a / determinant
    return _matrix(a, b, c, d, -(a * x + b * y), -(c * x + d * y))


def warp(maps: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Warp feature maps: the output at x is the input at matrix(x). Borders are reflected.

    Args:
        maps (torch.Tensor): Feature maps, shape ``(B, C, h, w)``.
        matrix (torch.Tensor): Transforms, shape ``(B, 2, 3)``.

    Returns:
        torch.Tensor: Warped maps, shape ``(B, C, h, w)``, in single precision.
    """
    with torch.autocast(maps.device.type, enabled=False):
        # Non-finite values would crash torch in the backward pass.
        matrix = matrix.float().nan_to_num(0.0).clamp(-1e3, 1e3)
        grid = F.affine_grid(matrix, list(maps.shape), align_corners=False)
        return F.grid_sample(maps.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)


class SpatialTransformer(nn.Module):
    """Module that predicts an affine transform from a feature map and applies it. It is initialized to the identity.

    Args:
        channels (int): Number of channels of the feature map.
        mode (str): Type of the transform, one of ``MODES``, see :func:`transform_matrix`.
        grid (int): Height and width after adaptive pooling, which allows maps of any size. Defaults to ``4``.

    Raises:
        ArgumentError: If ``mode`` is unknown.

    Reference:
        Jaderberg et al., https://arxiv.org/abs/1506.02025, as used in RegAD, https://arxiv.org/abs/2207.07361.
    """

    def __init__(self, channels: int, mode: str = "rotation_scale", grid: int = 4) -> None:
        super().__init__()
        if mode not in MODES:
            msg = f"`stn_mode` must be one of {MODES}, got {mode!r}."
            raise ArgumentError(msg)
        self.mode = mode
        head = nn.Linear(1024, sum(_PARAMETERS[part] for part in mode.split("_")))
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.localization = nn.Sequential(
            *_block(channels, 64),
            *_block(64, 16),
            nn.AdaptiveAvgPool2d(grid),
            nn.Flatten(),
            nn.Linear(16 * grid**2, 1024),
            nn.ReLU(),
            head,
        )

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the warped maps, shape ``(B, C, h, w)``, and the inverse transforms, shape ``(B, 2, 3)``."""
        matrix = transform_matrix(self.localization(maps).float(), self.mode, maps.shape[-2] / maps.shape[-1])
        return warp(maps, matrix), invert(matrix)


def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]


def _matrix(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor,
    x: torch.Tensor | None = None,
    y: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the batch of matrices [[a, b, x], [c, d, y]]. By default, x and y are 0."""
    x = torch.zeros_like(a) if x is None else x
    y = torch.zeros_like(a) if y is None else y
    return torch.stack((a, b, x, c, d, y), dim=1).unflatten(1, (2, 3))
