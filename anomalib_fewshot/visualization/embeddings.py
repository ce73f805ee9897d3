# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The features by which each model tells good images from others, one vector an image."""

from functools import singledispatch

import torch
from anomalib.models import AnomalibModule
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch import nn

from anomalib_fewshot._host import patchcore_embedding
from anomalib_fewshot.models.coft_ad.torch_model import CoftADModel
from anomalib_fewshot.models.reg_ad.torch_model import RegADModel
from anomalib_fewshot.models.uni_ad.torch_model import UniADModel

POOLINGS = ("mean", "peak")
MIN_STD = 1e-6
BATCH_SIZE = 16


@singledispatch
def patch_features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the features that a fitted model compares, at each position.

    For another model, register a function: ``@patch_features.register``.

    Args:
        model (nn.Module): The ``model`` of an anomalib model.
        images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

    Returns:
        torch.Tensor: Features, shape ``(B, N, D)``.

    Raises:
        TypeError: If the model is none of those that are known.
    """
    del images
    msg = f"`model` must have registered features, got {type(model).__name__}. Register a function by `patch_features`."
    raise TypeError(msg)


@patch_features.register
def _(model: CoftADModel, images: torch.Tensor) -> torch.Tensor:
    """Return the features of the first group in the metric of its Gaussian; as published, the image's embedding."""
    features = model.features(images)
    if model.published:
        return features.embeddings[:, None]
    density = model.densities[0]
    return ((features.patches[0] - density.mean[0]) @ density.metric[0]).flatten(1, 2)


@patch_features.register
def _(model: RegADModel, images: torch.Tensor) -> torch.Tensor:
    """Return the maps of all stages, warped back."""
    return model.embed(images).flatten(2).transpose(1, 2)


@patch_features.register
def _(model: UniADModel, images: torch.Tensor) -> torch.Tensor:
    """Return what the transformer cannot reconstruct."""
    tokens = model.standardize(model.embed(images))
    return tokens - model.transformer(tokens).tokens


@patch_features.register
def _(model: PatchcoreModel, images: torch.Tensor) -> torch.Tensor:
    """Return what the memory bank is made of."""
    return patchcore_embedding(model, images).flatten(2).transpose(1, 2)


def has_features(model: AnomalibModule) -> bool:
    """Return whether the features of a model are known to :func:`patch_features`."""
    return patch_features.dispatch(type(getattr(model, "model", None))) is not patch_features.dispatch(object)


def embed(
    model: AnomalibModule,
    support: torch.Tensor,
    images: torch.Tensor,
    pooling: str = "mean",
) -> torch.Tensor:
    """Return one vector for each image of the support, and of others.

    Args:
        model (AnomalibModule): A fitted model.
        support (torch.Tensor): Images of the support, RGB from 0 to 1, shape ``(K, 3, H, W)``.
        images (torch.Tensor): Other images, shape ``(B, 3, H, W)``.
        pooling (str): ``"mean"`` of all positions, or ``"peak"``, the position that is farthest from the mean of the
            support, each channel in units of its standard deviation there. Defaults to ``"mean"``.

    Returns:
        torch.Tensor: Vectors, shape ``(K + B, D)``, those of the support first.

    Raises:
        ValueError: If there is no such pooling.
        TypeError: As :func:`patch_features`.
    """
    if pooling not in POOLINGS:
        msg = f"`pooling` must be one of {POOLINGS}, got {pooling!r}."
        raise ValueError(msg)
    own = _features(model, support)
    std, mean = torch.std_mean(own.flatten(0, 1), dim=0, correction=0)
    std = std.clamp_min(MIN_STD)
    return torch.cat([_pool(part, mean, std, pooling) for part in (own, _features(model, images))])


@torch.no_grad()
def _features(model: AnomalibModule, images: torch.Tensor) -> torch.Tensor:
    transform = getattr(model.pre_processor, "transform", None) or nn.Identity()
    inner = model.eval().model
    if not isinstance(inner, nn.Module):
        return patch_features(inner, images)
    return torch.cat([
        patch_features(inner, transform(part.to(model.device))).float().cpu() for part in images.split(16)
    ])


def _pool(features: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return one vector an image: ``(B, N, D)`` -> ``(B, D)``."""
    if pooling == "mean":
        return features.mean(1)
    distance = torch.linalg.vector_norm((features - mean) / std, dim=-1)  # (B, N)
    return features[torch.arange(len(features)), distance.argmax(1)]
