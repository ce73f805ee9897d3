# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Features that each model compares to detect anomalies, pooled to one vector per image."""

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
    """Return the features that a fitted model compares at each position.

    Register a function for other models with ``@patch_features.register``.

    Args:
        model (nn.Module): Attribute ``model`` of an anomalib model.
        images (torch.Tensor): Normalized images, shape ``(B, 3, H, W)``.

    Returns:
        torch.Tensor: Features, shape ``(B, N, D)``.

    Raises:
        TypeError: If no function is registered for the model.
    """
    del images
    name = type(model).__name__
    msg = f"`model` must have registered features, got {name}. Use the decorator `patch_features.register`."
    raise TypeError(msg)


@patch_features.register
def _(model: CoftADModel, images: torch.Tensor) -> torch.Tensor:
    """Return the whitened features of the first group, or the image embedding if the model scores embeddings."""
    features = model.features(images)
    if model.published:
        return features.embeddings[:, None]
    density = model.scorer.densities[0]
    mean, metric = density.get_buffer("mean"), density.get_buffer("metric")
    return ((features.patches[0] - mean[0]) @ metric[0]).flatten(1, 2)


@patch_features.register
def _(model: RegADModel, images: torch.Tensor) -> torch.Tensor:
    """Return the feature maps of all stages, warped back by their inverse transforms."""
    return model.embed(images).flatten(2).transpose(1, 2)


@patch_features.register
def _(model: UniADModel, images: torch.Tensor) -> torch.Tensor:
    """Return the reconstruction error of the transformer."""
    tokens = model.standardize(model.embed(images))
    return tokens - model.transformer(tokens).tokens


@patch_features.register
def _(model: PatchcoreModel, images: torch.Tensor) -> torch.Tensor:
    """Return the patch embeddings that the memory bank contains."""
    return patchcore_embedding(model, images).flatten(2).transpose(1, 2)


def has_features(model: AnomalibModule) -> bool:
    """Return whether :func:`patch_features` supports a model."""
    return patch_features.dispatch(type(getattr(model, "model", None))) is not patch_features.dispatch(object)


def embed(
    model: AnomalibModule,
    support: torch.Tensor,
    images: torch.Tensor,
    pooling: str = "mean",
) -> torch.Tensor:
    """Embed the support set and other images as one vector per image.

    Args:
        model (AnomalibModule): A fitted model.
        support (torch.Tensor): Support set, RGB between 0 and 1, shape ``(K, 3, H, W)``.
        images (torch.Tensor): Other images, shape ``(B, 3, H, W)``.
        pooling (str): ``"mean"`` of all positions, or ``"peak"``: the position with the largest distance from the mean
            of the support set, with channels divided by their standard deviation. Defaults to ``"mean"``.

    Returns:
        torch.Tensor: Vectors, shape ``(K + B, D)``, with the support set first.

    Raises:
        ValueError: If ``pooling`` is unknown.
        TypeError: If no features are registered for the model.
    """
    if pooling not in POOLINGS:
        msg = f"`pooling` must be one of {POOLINGS}, got {pooling!r}."
        raise ValueError(msg)
    support_features = _features(model, support)
    std, mean = torch.std_mean(support_features.flatten(0, 1), dim=0, correction=0)
    std = std.clamp_min(MIN_STD)
    return torch.cat([_pool(each, mean, std, pooling) for each in (support_features, _features(model, images))])


@torch.no_grad()
def _features(model: AnomalibModule, images: torch.Tensor) -> torch.Tensor:
    transform = getattr(model.pre_processor, "transform", None) or nn.Identity()
    inner = model.eval().model
    if not isinstance(inner, nn.Module):
        return patch_features(inner, images)
    batches = (transform(batch.to(model.device)) for batch in images.split(BATCH_SIZE))
    return torch.cat([patch_features(inner, batch).float().cpu() for batch in batches])


def _pool(features: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool over positions: ``(B, N, D)`` -> ``(B, D)``."""
    if pooling == "mean":
        return features.mean(1)
    distance = torch.linalg.vector_norm((features - mean) / std, dim=-1)  # (B, N)
    return features[torch.arange(len(features)), distance.argmax(1)]
