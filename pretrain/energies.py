"""Energies: how far a prediction is from its target, one number a row.

Low for what belongs together. Everything is computed in fp32.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def l2(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference over the last axis: (..., D) to (...)."""
    return (predicted.float() - target.float()).square().mean(dim=-1)


def l1(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference over the last axis: (..., D) to (...)."""
    return (predicted.float() - target.float()).abs().mean(dim=-1)


def smooth_l1(predicted: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Quadratic below `beta`, linear above; mean over the last axis: (..., D) to (...)."""
    return F.smooth_l1_loss(predicted.float(), target.float(), beta=beta, reduction="none").mean(dim=-1)


def cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine, in [0, 2]: (..., D) to (...)."""
    return 1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Surprise at the true class in nats: logits (N, K), classes (N,) int64, to (N,)."""
    return F.cross_entropy(logits.float(), target, reduction="none")


def smoothed(surprise: Tensor, logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Surprise where a share of the target is spread evenly over all classes.

    Args:
        surprise: (N,), the `cross_entropy` of the same; nothing is exponentiated a second time.
        logits: (N, K).
        target: (N,) int64.
        smoothing: that share, in [0, 1).

    Source: Szegedy 2015, arXiv:1512.00567, section 7.
    """
    logits = logits.float()
    true = logits.gather(1, target[:, None]).squeeze(1)  # (N,)
    return surprise + smoothing * (true - logits.sum(dim=1) / logits.shape[1])


def gradient_difference(predicted: Tensor, target: Tensor) -> Tensor:
    """How unlike the steps between neighbouring pixels are in size: it punishes blur, which L1 and L2 invite.

    Args:
        predicted: (B, C, H, W) with H and W at least 2.
        target: (B, C, H, W).

    Returns:
        (B,): mean over vertical pairs of neighbours plus mean over horizontal ones.

    Source: Mathieu 2016, arXiv:1511.05440, equation 6 with alpha = 1; means for sums, as in Luc 2017's code.
    """
    predicted, target = predicted.float(), target.float()
    energy = predicted.new_zeros(len(predicted))
    for axis in (-2, -1):
        steps, wanted = predicted.diff(dim=axis).abs(), target.diff(dim=axis).abs()
        energy = energy + (steps - wanted).abs().mean(dim=(1, 2, 3))
    return energy


def normalize_patches(patches: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Each patch at mean 0 and variance 1.

    Args:
        patches: (..., P).

    Returns:
        normalised patches (..., P), means (..., 1), standard deviations (..., 1); so that
        patches = normalised * std + mean.

    Source: He 2021, arXiv:2111.06377, section 4.2; their code's unbiased variance and eps.
    """
    patches = patches.float()
    mean = patches.mean(dim=-1, keepdim=True)
    std = (patches.var(dim=-1, keepdim=True) + eps).sqrt()
    return (patches - mean) / std, mean, std
