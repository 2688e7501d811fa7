"""The losses written out per example (eq. 7), and the local weights of the baselines LW(P) and LW(W) (eq. 8-10).

TRL computes the loss that training minimises. These formulas serve what TRL does not provide: the weighted loss to log,
and the gradient check at start-up, which compares TRL's gradient with theirs. Suffixes: B examples, R rows of a forward pass (DPO: the chosen
of every example, then the rejected ones), T tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def example_losses(
    loss: str,
    policy_R: torch.Tensor,
    reference_R: torch.Tensor | None,
    *,
    beta: float | None = None,
    kl: torch.Tensor | None = None,
    label_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Loss of each example, not averaged over anything, from the summed log-probabilities of its rows.

    SFT: the negative log-likelihood in nats, summed over its tokens. DPO: eq. 7 of Rafailov et al. KTO: eq. 7 of Ethayarajh
    et al. with both class weights 1; `kl` is its reference point, `label_B` true for desirable completions.
    """
    if loss == "sft":
        return -policy_R
    assert beta is not None
    assert reference_R is not None
    ratio_R = policy_R - reference_R
    if loss == "dpo":
        chosen_B, rejected_B = ratio_R.chunk(2)
        return -F.logsigmoid(beta * (chosen_B - rejected_B))
    assert kl is not None
    assert label_B is not None
    return 1 - torch.sigmoid(beta * torch.where(label_B, ratio_R - kl, kl - ratio_R))


def local_weights(
    kind: str, log_probs_RT: torch.Tensor, mask_RT: torch.Tensor, log_sum_sq_probs_RT: torch.Tensor | None
) -> torch.Tensor:
    """Weight of each row from the policy's own token probabilities, without gradient: "perplexity" (eq. 8) or "wpo" (eq. 10).

    Only tokens where `mask_RT` is true count.
    """
    with torch.no_grad():
        tokens_R = mask_RT.sum(dim=1).clamp_min(1)
        if kind == "perplexity":
            return torch.exp(-(log_probs_RT * mask_RT).sum(dim=1) / tokens_R)
        assert log_sum_sq_probs_RT is not None
        return torch.exp(((log_probs_RT - log_sum_sq_probs_RT) * mask_RT).sum(dim=1) / tokens_R)
