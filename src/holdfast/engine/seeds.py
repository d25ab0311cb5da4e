"""The random states of a process: set once, kept in every checkpoint."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Set the random states of Python, NumPy and torch (all devices) from `seed`.

    >>> seed_everything(1); first = torch.rand(1)
    >>> seed_everything(1); bool(first == torch.rand(1))
    True
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries below us draw from the global state
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The random states as plain containers and tensors, which `restore` takes."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(state: Mapping[str, Any]) -> None:
    """Go on drawing where `random_state` was taken."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def generator(*parts: int) -> torch.Generator:
    """A generator that depends on all `parts` (a seed, an epoch, ...) and on nothing else.

    >>> same = torch.rand(1, generator=generator(7, 2)) == torch.rand(1, generator=generator(7, 2))
    >>> bool(same)
    True
    """
    # The length goes in because a seed sequence takes (0,) and (0, 0) for the same.
    seed = np.random.SeedSequence([len(parts), *parts]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) % 2**63)
