"""One published method per file, each reading like its paper's method section."""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.errors import UserError


class System(NamedTuple):
    """A method: the module, its settings class, and one line for people."""

    module: str
    settings: str
    about: str

    def load(self) -> tuple[Any, Any]:
        """The settings class and the function that runs them."""
        module = importlib.import_module(f"holdfast.systems.{self.module}")
        return getattr(module, self.settings), module.run


SYSTEMS = {
    "a_lol": System("a_lol", "ALol", "offline policy gradients from answers with rewards: A-LoL, DPO, PRO and kin"),
    "hc_rlhf": System("hc_rlhf", "HcRlhf", "a policy under a pessimistic limit, released only with a certificate"),
    "micro": System("micro", "Micro", "one reward model for people who disagree, by words or by a few labels"),
    "mo_grpo": System("mo_grpo", "MoGrpo", "GRPO without a critic: several objectives, by weights or under limits"),
    "ppo_max": System("ppo_max", "PpoMax", "PPO that stays stable: PPO-max, with a detector of collapse"),
    "score_model": System(
        "score_model", "ScoreModelSettings", "reward, cost and attribute models alone, each with its audit"
    ),
    "safe_rlhf_v": System("safe_rlhf_v", "SafeRlhfV", "PPO with separate reward and cost under a Lagrangian limit"),
    "weak_to_strong": System("weak_to_strong", "WeakToStrong", "how far a weak model's labels carry a strong one"),
}


def find(name: str | None) -> System:
    """The system called `name`; `UserError` that lists the known ones otherwise."""
    if name is None:
        raise UserError(f"the recipe names no system; add `system: NAME`, one of {', '.join(SYSTEMS)}")
    if name not in SYSTEMS:
        raise UserError(f"no system called {name!r}; known are {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def recipe(name: str | Path) -> Path:
    """The recipe file `name`: a path as it is, or `system/recipe` among those that come with Holdfast."""
    given, folder = Path(name), Path(__file__).parent.parent / "recipes"
    shipped = folder / given.with_suffix(".yaml")
    if not given.is_file() and not shipped.is_file():
        known = sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))
        raise UserError(f"no recipe at {name}; give the path of a YAML file, or one of {', '.join(known)}")
    return given if given.is_file() else shipped
