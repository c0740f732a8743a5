"""A value head: a number for each prompt, learned beside a policy."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_pref.batch import PreferenceBatch


class ValueHead(nn.Module):
    """V(x) = w . h / |h| + b, h the policy's last hidden state of the prompt, which takes no gradient; 0 at the start.

    h is normalised, so that the gradient of w is as large as that of b, however large hidden states are.

    Args:
        width: H, the size of hidden states.
        dtype: that of the policy's head, because FSDP2 shards weights of one dtype together.
        rate: the head's own learning rate.
    """

    def __init__(self, width: int, dtype: torch.dtype, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.weight = nn.Parameter(torch.zeros(width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, hidden: Tensor, batch: PreferenceBatch) -> Tensor:
        """Return the values of the B prompts, (B,), in fp32 or wider.

        Args:
            hidden: (N, H), hidden states that predict the response tokens of the batch; those that predict the first
                ones are the prompts'.
            batch: B pairs in any layout.
        """
        sequences = batch.rows.sequences
        first = torch.full_like(batch.rows.ends, len(sequences)).scatter_reduce(
            0, sequences, torch.arange(len(sequences), device=sequences.device), "amin"
        )
        prompts = hidden.detach().index_select(0, first[: len(batch)])
        wide = torch.promote_types(hidden.dtype, torch.float32)
        # A sum of products, because autocast would multiply matrices in bf16.
        return (F.normalize(prompts.to(wide), dim=-1) * self.weight.to(wide)).sum(-1) + self.bias.to(wide)
