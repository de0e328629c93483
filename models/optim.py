"""Muon for the weight matrices of the decoder, AdamW for the rest.

Muon (Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks",
https://github.com/KellerJordan/Muon) replaces the momentum matrix G = U S Vᵀ of each weight by
an approximation of U Vᵀ, found with five Newton–Schulz rounds, so that every direction of the
matrix is updated by the same amount. Weights of one shape are stacked, so the update of all
layers is a few batched matrix products.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

# Five rounds of s → A s + B s³ + C s⁵ take singular values in (0, 1] to about 1; the three
# numbers are the ones that https://github.com/KellerJordan/Muon publishes.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Returns about U Vᵀ of each matrix U S Vᵀ; matrices: [count, rows, columns] → bfloat16."""
    rows, columns = matrices.shape[-2:]
    wide = matrices.mT if rows > columns else matrices  # the Gram matrix takes the short side
    frobenius = torch.linalg.matrix_norm(wide, keepdim=True)  # bounds every singular value
    x = (wide / (frobenius + 1e-7)).bfloat16()
    for _ in range(ROUNDS):
        gram = torch.bmm(x, x.mT)
        quintic = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        x = torch.baddbmm(x, quintic, x, beta=A)
    result: Tensor = x.mT if rows > columns else x
    return result


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum with decoupled weight decay, for matrices.

    A 3-D parameter is a stack of matrices (the experts of a layer): each is updated on its own.
    The update of a rows × columns matrix is scaled by √max(1, rows / columns), so that one
    learning rate serves all shapes.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in params:
            by_shape[parameter.shape].append(parameter)
        groups = [{"params": group} for group in by_shape.values()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        on_gpu = params[0].is_cuda
        self._orthogonalize = torch.compile(orthogonalize) if on_gpu else orthogonalize

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params: list[Tensor] = group["params"]
            gradient = torch.stack([p.grad for p in params if p.grad is not None]).float()
            state = self.state[params[0]]
            if not state:
                state["momentum"] = torch.zeros_like(gradient)
            momentum: Tensor = state["momentum"]
            momentum.lerp_(gradient, 1 - group["momentum"])
            rows, columns = gradient.shape[-2:]
            nesterov = gradient.lerp(momentum, group["momentum"])
            update = self._orthogonalize(nesterov.view(-1, rows, columns)).view_as(gradient)
            scale = max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, list(update.float().unbind(0)), alpha=-group["lr"] * scale)


def build(
    model: nn.Module,
    *,
    matrix_lr: float | None,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    matrix_weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """Returns the optimizers of a decoder or a head: AdamW alone when `matrix_lr` is None.

    Norm weights are never decayed.
    """
    matrices, embedding, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif "embed_tokens" in name:
            embedding.append(parameter)
        else:
            matrices.append(parameter)
    decayed = embedding if matrix_lr is not None else embedding + matrices
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=lr,
            betas=betas,
            fused=vectors[0].is_cuda,
        )
    ]
    if matrix_lr is not None:
        optimizers.append(Muon(matrices, matrix_lr, 0.95, matrix_weight_decay))
    return optimizers
