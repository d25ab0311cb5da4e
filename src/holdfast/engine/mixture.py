"""How many harmless prompts each iteration holds: training on attacks alone teaches a policy to refuse everyone."""

from collections.abc import Sequence

import torch

from holdfast.engine.online import take
from holdfast.engine.seeds import generator
from holdfast.errors import UserError


class Mixture:
    """Chooses the prompts of an iteration so that a fixed share of them is benign.

    benign: for each prompt, whether it is harmless; share: 0..1, of the prompts of every iteration.

    >>> mixture = Mixture([True, False, False, False, False, True], share=0.25)
    >>> chosen = mixture.take(4, number=0, seed=1)
    >>> len(set(chosen)), sum(i in (0, 5) for i in chosen)
    (4, 1)
    """

    def __init__(self, benign: Sequence[bool], share: float) -> None:
        if not 0 <= share <= 1:
            raise UserError(f"the benign share of prompts is {share}; give a number from 0 to 1")
        self.share = share
        self._kinds = {
            "benign": [i for i, harmless in enumerate(benign) if harmless],
            "other": [i for i, harmless in enumerate(benign) if not harmless],
        }

    def take(self, portion: int, number: int, seed: int) -> list[int]:
        """Indices of the `portion` prompts of iteration `number` (from 0): round(share portion) benign, the rest not.

        Each kind is shuffled anew in epochs of its own, and the two are mixed, so that every process gets some of
        both. It depends on nothing but the arguments, and no prompt comes twice. Raises `UserError` when a kind has
        fewer prompts than an iteration takes, or would be left out although the share asks for it.
        """
        chosen = [
            indices[i]
            for stream, (indices, wanted) in enumerate(self._wanted(portion))
            if wanted
            for i in take(len(indices), wanted, number, seed, stream)
        ]
        order = torch.randperm(portion, generator=generator(seed, number, len(self._kinds)))
        return [chosen[i] for i in order.tolist()]

    def _wanted(self, portion: int) -> list[tuple[list[int], int]]:
        """The indices of each kind, and how many of them an iteration takes."""
        first = round(self.share * portion)
        counts = {"benign": first, "other": portion - first}
        if 0 < self.share < 1 and 0 in counts.values():
            raise UserError(
                f"a benign share of {self.share} of {portion} prompts is {first} benign and {portion - first} other "
                "prompts, so one kind would never be seen; raise prompts_per_iteration, or set the share to 0 or 1"
            )
        for name, wanted in counts.items():
            if wanted > (given := len(self._kinds[name])):
                raise UserError(
                    f"a benign share of {self.share} takes {wanted} {name} prompts in an iteration of {portion}, and "
                    f"only {given} are given; add {name} prompts, lower prompts_per_iteration, or change the share"
                )
        return [(self._kinds[name], wanted) for name, wanted in counts.items()]
