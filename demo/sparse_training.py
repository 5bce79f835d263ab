"""What the training of transcoders and of Lorsas has in common."""

import torch

from demo.lorsas import keep_largest


def auxiliary_loss(
    before: torch.Tensor, error: torch.Tensor, decoder: torch.Tensor, active: int
) -> torch.Tensor:
    """How badly the dead features alone explain what the live ones leave (Gao et al. 2024).

    Args:
        before: what the dead features read, before their activation function, (token, feature).
        error: what the live features leave of the target, (token, d_model).
        decoder: what the dead features write, (feature, d_model).
        active: how many dead features a token takes.
    """
    left = error - keep_largest(before, active) @ decoder
    return left.square().sum() / error.square().sum().clamp(min=1e-8)


def constant_then_falling(
    optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate falls to a fiftieth over the last fifth of the steps."""
    last_fifth = steps * 4 // 5
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, max(0.02, (steps - step) / (steps - last_fifth)))
    )
