# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Losses of CoftAD: the published L = L_con + positive_weight * L_PP + negative_weight * L_NP, and one of patches."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

SHARPNESS = 2.0  # of the logistic loss
MIN_ENERGY = 1e-3


def cosine_matrix(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarity of every prediction with every target.

    Args:
        prediction (torch.Tensor): Embeddings, shape ``(B, D)``.
        target (torch.Tensor): Embeddings, shape ``(B, D)``.

    Returns:
        torch.Tensor: Similarities in ``[-1, 1]``, shape ``(B, B)``.

    Raises:
        ValueError: If the shapes differ.
    """
    if prediction.shape != target.shape:
        msg = f"`prediction` and `target` must have one shape, got {tuple(prediction.shape)} and {tuple(target.shape)}."
        raise ValueError(msg)
    return F.normalize(prediction, dim=-1) @ F.normalize(target, dim=-1).T


def same_instance_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the negative cosine similarity between two views of the same image, averaged over the images.

    Args:
        prediction (torch.Tensor): Output of the prediction head for one view of each image, shape ``(B, D)``.
        target (torch.Tensor): Output of the projection head for another view, shape ``(B, D)``, already detached.

    Returns:
        torch.Tensor: Scalar in ``[-1, 1]``, lower is better.

    Example:
        >>> views = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> same_instance_loss(views, -views)
        tensor(1.)

    Reference:
        L_con of COFT-AD, https://arxiv.org/abs/2402.18998, in the form of SimSiam, eq. 1 of
        https://arxiv.org/abs/2011.10566, which repels no normal image from another.
    """
    return -cosine_matrix(prediction, target).diagonal().mean()


def cross_instance_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the negative cosine similarity between views of different images, averaged over the pairs.

    Args:
        prediction (torch.Tensor): Output of the prediction head for one view of each image, shape ``(B, D)``.
        target (torch.Tensor): Output of the projection head for another view, shape ``(B, D)``, already detached.

    Returns:
        torch.Tensor: Scalar in ``[-1, 1]``, lower is better. 0 for a single image, which has no other.

    Example:
        >>> views = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> cross_instance_loss(views, views)
        tensor(-0.3333)

    Reference:
        L_PP, the cross-instance positive pairs of COFT-AD, https://arxiv.org/abs/2402.18998.
    """
    similarity = cosine_matrix(prediction, target)
    batch = len(similarity)
    return -(similarity.sum() - similarity.trace()) / max(batch * (batch - 1), 1)


def negative_pair_loss(clean: torch.Tensor, anomalous: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarity between an image and an anomaly made from it, averaged over the images.

    Args:
        clean (torch.Tensor): Embeddings of the images, shape ``(B, D)``.
        anomalous (torch.Tensor): Embeddings of the anomalies made from them, shape ``(B, D)``.

    Returns:
        torch.Tensor: Scalar in ``[-1, 1]``, lower is better.

    Example:
        >>> negative_pair_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
        tensor(0.7071)

    Reference:
        L_NP, the negative pairs of COFT-AD, https://arxiv.org/abs/2402.18998.
    """
    return cosine_matrix(clean, anomalous).diagonal().mean()


def mean_log_energy(embeddings: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of each embedding's mean square, about 0 for a normal one: ``(..., D)`` -> ``(...)``."""
    return (embeddings.square().mean(-1) + MIN_ENERGY).log()


class AdaptationLoss(nn.Module):
    r"""Loss of a fine-tuned metric: normal patches near the Gaussian, anomalous ones far, and both bounded.

    With e the logarithm of a patch's mean square after whitening and the metric A, and b a trained threshold,

    .. math:: L = w_P \log(1 + \exp(s (e_{normal} - b))) + w_N \log(1 + \exp(s (b - e_{anomalous})))
        + w_A |A - I|^2 / D

    Args:
        positive_weight (float): Weight w_P of the normal patches.
        negative_weight (float): Weight w_N of the anomalous patches.
        anchor_weight (float): Weight w_A of how far the metric moves.

    Raises:
        ValueError: If a weight is below 0.
    """

    def __init__(self, positive_weight: float, negative_weight: float, anchor_weight: float) -> None:
        super().__init__()
        _check_weights(
            positive_weight=positive_weight,
            negative_weight=negative_weight,
            anchor_weight=anchor_weight,
        )
        self.positive_weight = positive_weight
        self.negative_weight = negative_weight
        self.anchor_weight = anchor_weight

    def forward(
        self,
        normal: torch.Tensor,
        anomalous: torch.Tensor,
        threshold: torch.Tensor,
        metric_delta: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss.

        Args:
            normal (torch.Tensor): The e of normal patches, whitened, times A, shape ``(M,)``.
            anomalous (torch.Tensor): The e of anomalous patches, whitened, times A, shape ``(N,)``.
            threshold (torch.Tensor): The b above, a scalar.
            metric_delta (torch.Tensor): A - I, shape ``(D, D)``.

        Returns:
            torch.Tensor: Scalar.
        """
        near = F.softplus(SHARPNESS * (normal - threshold)).mean()
        far = F.softplus(SHARPNESS * (threshold - anomalous)).mean()
        anchor = metric_delta.square().sum() / len(metric_delta)
        return self.positive_weight * near + self.negative_weight * far + self.anchor_weight * anchor


class CoftADLoss(nn.Module):
    """Sum of the losses, symmetric in the two views.

    Args:
        positive_weight (float): Weight of the cross-instance positive pairs.
        negative_weight (float): Weight of the negative pairs.

    Raises:
        ValueError: If a weight is below 0.
    """

    def __init__(self, positive_weight: float, negative_weight: float) -> None:
        super().__init__()
        _check_weights(positive_weight=positive_weight, negative_weight=negative_weight)
        self.positive_weight = positive_weight
        self.negative_weight = negative_weight

    def forward(
        self,
        predictions: tuple[torch.Tensor, torch.Tensor],
        projections: tuple[torch.Tensor, torch.Tensor],
        clean: torch.Tensor | None = None,
        anomalous: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss.

        Args:
            predictions (tuple[torch.Tensor, torch.Tensor]): Outputs of the prediction head for two views of each image,
                each of shape ``(B, D)``.
            projections (tuple[torch.Tensor, torch.Tensor]): Outputs of the projection head, each of shape ``(B, D)``.
            clean (torch.Tensor | None): Embeddings of the images, shape ``(B, D)``. Defaults to ``None``.
            anomalous (torch.Tensor | None): Embeddings of anomalies made from them. Defaults to ``None``.

        Returns:
            torch.Tensor: Scalar.
        """
        (first, second), (target_first, target_second) = predictions, (p.detach() for p in projections)
        pairs = ((first, target_second), (second, target_first))
        loss = sum(same_instance_loss(*pair) for pair in pairs) / 2
        if self.positive_weight > 0:
            loss = loss + self.positive_weight * sum(cross_instance_loss(*pair) for pair in pairs) / 2
        if self.negative_weight > 0 and clean is not None and anomalous is not None:
            loss = loss + self.negative_weight * negative_pair_loss(clean, anomalous)
        return loss


def _check_weights(**weights: float) -> None:
    for name, weight in weights.items():
        if weight < 0:
            msg = f"`{name}` must not be below 0, got {weight}."
            raise ValueError(msg)
