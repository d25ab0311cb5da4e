"""What both sides of `grpo.py` and `gpu.py` begin with: a case, its networks, prompts, and answers to compare by."""

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from holdfast.models.heads import ScoreModel, from_policy
from holdfast.models.policy import hidden_states
from holdfast.models.tiny import tiny_policy

Model = TypeVar("Model", bound=nn.Module)
PAD, EOS, FIRST_WORD = 0, 1, 2
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else ' ' }}{% endfor %}"


class Size(NamedTuple):
    """A Qwen2 built from configuration."""

    hidden: int
    layers: int
    vocabulary: int


SIZES = {
    "tiny": Size(64, 2, 256),
    "1M": Size(128, 3, 2560),
    "5M": Size(256, 4, 5120),
    "15M": Size(384, 7, 8192),
    "40M": Size(512, 10, 16384),
    "500M": Size(1280, 28, 32768),
}


@dataclass(frozen=True)
class Case:
    """What one process runs.

    ends: answers end by themselves, after half of `response` tokens on average; else every answer has them all.
    rows: answers in one forward and backward pass of TRL, all of a step when 0; micro_tokens: padded tokens in one of
    ours. sampler: TRL's, transformers or vllm.
    """

    size: str
    prompt: int
    response: int
    ends: bool = False
    prompts: int = 8
    group: int = 8
    steps: int = 1
    threads: int = 2
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    rows: int = 0
    micro_tokens: int = 16384
    sampler: str = "transformers"

    @property
    def answers(self) -> int:
        """Answers of one step."""
        return self.prompts * self.group


class World(NamedTuple):
    """What both sides begin with; the reference is made where it is needed, so that nobody holds it twice."""

    tokenizer: PreTrainedTokenizerFast
    policy: PreTrainedModel
    scorer: ScoreModel
    texts: list[str]


Answers = dict[tuple[int, ...], list[list[int]]]
"""For each prompt, by its ids, the answers that every sampler shall give."""


def build(case: Case) -> World:
    """Return the networks on the case's device, and prompts for one step more than is timed."""
    size = SIZES[case.size]
    words = {f"w{i}": i for i in range(FIRST_WORD, size.vocabulary)}
    policy = tiny_policy(
        size.vocabulary,
        kind="qwen2",
        hidden=size.hidden,
        layers=size.layers,
        heads=max(size.hidden // 64, 2),
        max_positions=case.prompt + case.response + 1,
    )
    draw = torch.Generator().manual_seed(1)
    count = (case.steps + 1) * case.prompts
    ids = torch.randint(FIRST_WORD, size.vocabulary, (count, case.prompt), generator=draw)
    # The share of rows that end at each token for which the mean of their lengths, cut at R, is R / 2.
    share = 1.594 / case.response
    end = math.log(share / (1 - share) * size.vocabulary) if case.ends else -30.0
    lean(policy, ids[:2], {PAD: -30.0, EOS: end})
    policy = cast(policy.to(case.device), case.dtype)
    scorer = from_policy(policy, ("reward",), init_std=0.5)
    with torch.no_grad():
        scorer.head.weight[:, 0] = 0.0  # the constant unit would be most of every score
    return World(tokenizer(words), policy, scorer, [" ".join(f"w{i}" for i in row) for row in ids.tolist()])


def tokenizer(words: dict[str, int]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one id per word, so that prompts have exactly the tokens they shall have."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    inner = Tokenizer(WordLevel({"<pad>": PAD, "<eos>": EOS, **words}, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="left")
    made.chat_template = TEMPLATE
    return made


def cast(model: Model, dtype: str) -> Model:
    """Return the model itself with its weights in another precision; what its positions are made of stays exact."""
    for weight in model.parameters():
        weight.data = weight.data.to(getattr(torch, dtype))
    return model


def lean(policy: PreTrainedModel, ids: Tensor, logits: dict[int, float]) -> None:
    """Give some tokens about the same logit everywhere: one hidden unit is made constant, and only they read it."""
    with torch.no_grad():
        policy.get_input_embeddings().weight[:, 0] = 1.0
        head = policy.get_output_embeddings().weight
        head[:, 0] = 0.0
        positions = torch.arange(ids.shape[1]).expand(ids.shape)
        unit = hidden_states(policy, ids, torch.ones_like(ids), positions)[..., 0].mean()
        for token, logit in logits.items():
            head[token] = 0.0
            head[token, 0] = logit / unit


def reference_of(policy: PreTrainedModel) -> PreTrainedModel:
    """Return a policy some way off, so that the KL to it is not zero from the start."""
    other = copy.deepcopy(policy)
    head = other.get_output_embeddings().weight
    noise = torch.randn(head.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        head.add_(0.01 * noise.to(head))
    return other


def given_answers(case: Case, world: World) -> Answers:
    """Return answers of all lengths to the prompts of one step; half of them end by themselves."""
    draw = torch.Generator().manual_seed(3)

    def words(end: bool) -> list[int]:
        length = int(torch.randint(1, case.response + (not end), (1,), generator=draw))
        ids = torch.randint(FIRST_WORD, SIZES[case.size].vocabulary, (length,), generator=draw).tolist()
        return [*ids, EOS] if end else ids

    prompts = [tuple(world.tokenizer(text)["input_ids"]) for text in world.texts[: case.prompts]]
    return {prompt: [words(end=g % 2 == 0) for g in range(case.group)] for prompt in prompts}
