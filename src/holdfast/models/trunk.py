"""Critics without a network: value heads on the hidden states that the policy computes anyway.

The economy mode. Values cost no forward pass of their own while the policy learns, and no gradient flows from them
into the policy (shared trainable weights can collapse it). What a value can say is limited to what the policy's
states hold; a critic with its own adapter (`critic_from`) can learn more.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from holdfast.models.heads import check_names
from holdfast.models.policy import evaluating, hidden_states, unwrapped


class HeadsOnPolicy(nn.Module):
    """A critic with one float32 linear head per name over `policy`, zero at the start.

    It is read like a score model's critic, with `token_values`. Parameters and state are those of the heads: the
    policy is held and never registered, so an optimiser or a checkpoint of the critic does not see it.

    While both learn, the policy's loss comes first and hands over the states of the micro-batch:

        hidden = hidden_states(policy, ...)
        critic.remember(batch, hidden)
        logprobs = logprobs_at(policy, hidden, ...)

    and the heads' loss of the same micro-batch takes `critic.recall(batch)`. The states are those of the policy
    before its step, hence the values are what `token_values` would have given there.
    """

    def __init__(self, policy: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        check_names(names)
        self.names = tuple(names)
        self._held = (policy,)  # a module inside a tuple is no submodule
        self._remembered: dict[int, tuple[object, Tensor]] = {}
        size = unwrapped(policy).config.get_text_config().hidden_size
        device = next(policy.parameters()).device
        self.head = nn.Linear(size, len(self.names), dtype=torch.float32, device=device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def policy(self) -> nn.Module:
        """The policy whose states are read."""
        return self._held[0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **images: Tensor) -> Tensor:
        """Return `token_values`: one entrance for wrappers."""
        with evaluating(self.policy):
            hidden = hidden_states(self.policy, input_ids, attention_mask, position_ids, **images)
        return self.values_at(hidden)

    def token_values(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **images: Tensor) -> Tensor:
        """Return (B, T, K) float32 values of every prefix, from a forward pass of the policy as it is now."""
        return self(input_ids, attention_mask, position_ids, **images)

    def values_at(self, hidden: Tensor) -> Tensor:
        """Return (..., K) values from the policy's last hidden states (..., H); no gradient reaches these."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.detach().to(self.head.weight.dtype))

    def remember(self, batch: object, hidden: Tensor) -> None:
        """Keep the policy's states (B, T, H) of `batch`, without their graph, until `recall` asks for them.

        All micro-batches of one optimiser step are held at once: tokens x H numbers.
        """
        # Holding `batch` too keeps its identity from being given to another object.
        self._remembered[id(batch)] = (batch, hidden.detach())

    def recall(self, batch: object) -> Tensor | None:
        """Return (B, T, K) values from the states remembered of this very `batch`, once; None if there are none."""
        found = self._remembered.pop(id(batch), None)
        return None if found is None else self.values_at(found[1])
