# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The published form: contrastive fine-tuning of the backbone, and one Gaussian of image embeddings.

Reference:
    Liao et al., COFT-AD, https://arxiv.org/abs/2402.18998. Settings that the description does not give are ours.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_fewshot.models.components import Moments, oas_covariance

NUM_VIEWS = 16  # of each image that the Gaussian is fitted to
LEARNING_RATE = 3e-5
WEIGHT_DECAY = 1e-4
HeadOutputs = tuple[torch.Tensor, torch.Tensor]  # projections and predictions, each (B, D)


class ContrastiveHeads(nn.Module):
    """Projection and prediction head of SimSiam, which the training needs and the score does not.

    They have layer norms. A batch of a few images makes poor batch statistics, and a batch of one none.

    Args:
        dim (int): Length E of an image embedding.
        hidden_dim (int): Length D of a projection.
    """

    def __init__(self, dim: int, hidden_dim: int = 256) -> None:
        super().__init__()
        self.projection = _mlp(dim, hidden_dim, hidden_dim)
        self.prediction = _mlp(hidden_dim, hidden_dim // 4, hidden_dim)

    def forward(self, embeddings: torch.Tensor) -> HeadOutputs:
        """Return projections and predictions: ``(B, E)`` -> twice ``(B, D)``."""
        projection = self.projection(embeddings)
        return projection, self.prediction(projection)


def _mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.LayerNorm(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, out_dim),
    )


def cosine_matrix(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarity of every prediction with every target.

    Args:
        prediction (torch.Tensor): Embeddings, shape ``(B, D)``.
        target (torch.Tensor): Embeddings, shape ``(B, D)``.

    Returns:
        torch.Tensor: Similarities in ``[-1, 1]``, shape ``(B, B)``.
    """
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


class ContrastiveLoss(nn.Module):
    """L_con + positive_weight * L_PP + negative_weight * L_NP, symmetric in the two views.

    Args:
        positive_weight (float): Weight of the cross-instance positive pairs.
        negative_weight (float): Weight of the negative pairs.
    """

    def __init__(self, positive_weight: float, negative_weight: float) -> None:
        super().__init__()
        self.positive_weight = positive_weight
        self.negative_weight = negative_weight

    def forward(self, first: HeadOutputs, second: HeadOutputs, *pair: torch.Tensor) -> torch.Tensor:
        """Return the loss.

        Args:
            first (HeadOutputs): Projections and predictions of one view of each image, each of shape ``(B, D)``.
            second (HeadOutputs): Those of another view of each image.
            *pair (torch.Tensor): Embeddings of the images and of anomalies made from them, each of shape ``(B, E)``, or
                nothing.

        Returns:
            torch.Tensor: Scalar.
        """
        loss = torch.zeros((), device=first[0].device)
        for (_, prediction), (projection, _) in ((first, second), (second, first)):
            target = projection.detach()
            loss = loss + same_instance_loss(prediction, target) / 2
            loss = loss + self.positive_weight * cross_instance_loss(prediction, target) / 2
        return loss + self.negative_weight * negative_pair_loss(*pair) if pair else loss


def image_gaussian(moments: Moments, regularization: float = 0.01) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean m, ``(E,)``, and matrix M, ``(E, E)``, of the Mahalanobis distance |(x - m) M| of embeddings.

    Args:
        moments (Moments): Moments of embeddings of length E.
        regularization (float): Variance added in every direction, as a fraction of the mean variance. The views of a
            few images are similar, and shrinkage by their number alone is too weak. Defaults to ``0.01``.
    """
    covariance = oas_covariance(moments)
    identity = torch.eye(len(covariance)).to(covariance)
    variance = (covariance.trace() / len(covariance)).clamp_min(1e-12)  # a single embedding has none
    root = torch.linalg.cholesky(covariance + regularization * variance * identity)
    return moments.mean.float(), torch.linalg.solve_triangular(root, identity, upper=False).T.float()
