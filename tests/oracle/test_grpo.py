"""GRPO for several objectives against the same written down slowly: float64, one answer and one token at a time."""

import copy
import math
from contextlib import nullcontext
from statistics import mean, stdev

import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.step import OptimiserSettings, Step
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.experience import Collector, RolloutSettings
from holdfast.rollout.types import Sample, Sampling
from holdfast.training.grpo import Grpo, GrpoSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits

# A float32 network against a float64 one.
CLOSE = {"rel": 1e-4, "abs": 2e-5}
NAN = math.nan
K, LONGEST = 3, 6
ASKED = ["green blue red sea ?", "sea sky dark ?", "sky blue ?", "red dark sea sky ?"]
# Ragged on purpose: answers that end at once, of a single word that is cut, whole ones, and long cut ones.
ANSWERS = [
    *(["end"], ["sky", "sea", "end"], ["red"]),
    *(["dark", "sea", "red", "end"], ["end"], ["blue"] * 6),
    *(["sky", "end"], ["sea", "sky", "sea", "red", "end"], ["red", "end"]),
    *(["blue", "sea", "sky", "sky", "red", "red"], ["sky", "blue", "end"], ["sea", "end"]),
]
CUT = [words[-1] != "end" for words in ANSWERS]
# Four prompts: everything varies; rewards that hardly do; rewards that do not, while costs do; the other way round.
SCORES = {
    "reward": [1.0, 0.2, -0.5, 0.30, 0.31, 0.33, 0.6, 0.6, 0.6, 2.0, 0.0, 1.0],
    "safety": [0.0, 1.0, 0.5, 0.5, 0.5, 0.9, 0.7, 0.7, 0.7, 0.2, 0.3, 0.8],
    "patchy": [0.1, NAN, 0.9, NAN, 0.4, NAN, 0.4, 0.4, 0.4, 0.2, 0.9, NAN],
    "alone": [0.5, NAN, 0.7, NAN, NAN, NAN, 0.4, 0.4, 0.4, NAN, 0.9, 0.2],
    "gain": [1.0, 0.2, 0.0, 0.3, 0.3, 0.9, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
    "cost": [0.3, -0.2, 0.8, 0.05, 0.05, 0.06, 0.1, 0.9, -0.4, 0.2, 0.2, 0.2],
    "rude": [-0.7, -0.1, 0.4, 0.2, 0.6, -0.3, 0.3, 0.1, 0.5, 0.3, 0.4, 0.0],
}
RUDE = {"name": "rude", "score": "rude", "bound": "mean", "initial": 0.5}
STUDENT = {"bound": "student_t", "c1": 1.0, "initial": 2.0}
BOTH = [STUDENT, RUDE]
TWO = {"reward": {}, "safety": {"weight": 0.5}}
THREE = {"reward": {}, "safety": {"weight": 0.5}, "patchy": {"weight": 2.0, "direction": "lower", "std_floor": 0.4}}


def mode(name, objectives=THREE, **others):
    return {"objectives": objectives, "scalarise": {"mode": name, **others}}


def loss(**settings):
    return {"loss": settings, **mode("sum_then_normalise")}


CASES = {
    "one objective": ({}, []),
    "three objectives": (mode("sum_then_normalise"), []),
    "decoupled": (mode("normalise_then_sum"), []),
    "decoupled, brought to one scale": (mode("normalise_then_sum", batch_normalise=True), []),
    "by variance": (mode("variance_weighted"), []),
    "centred": (mode("center"), BOTH),
    "leave one out": (mode("leave_one_out"), BOTH),
    "batch": (mode("batch"), BOTH),
    "max_rl": (mode("max_rl", {"gain": {}, "safety": {}}), [RUDE]),
    "mgda": (mode("mgda", TWO), BOTH),
    "mgda, another only watched": (mode("mgda", {**TWO, "rude": {"weight": 0.0}}), []),
    "weights, another only watched": (mode("variance_weighted", {"rude": {"weight": 0.0}, **TWO}), []),
    "no floor, tight clip": (mode("sum_then_normalise", std_floor=0.0, clip=0.9), [RUDE]),
    "no clip": (mode("normalise_then_sum", std_floor=0.0, clip=None), BOTH),
    "answers nobody scored": (mode("normalise_then_sum", {"alone": {}}), BOTH),
    "conditions": (mode("sum_then_normalise", THREE | {"reward": {"when": {"safety": 0.5, "patchy": 0.5}}}), []),
    "in order": (mode("normalise_then_sum", {"safety": {"enough": 0.5}, "reward": {}}, lexicographic=True), []),
    "in order, lower is better": (
        mode("center", {"patchy": {"direction": "lower", "enough": 0.5}, "reward": {}}, lexicographic=True),
        [],
    ),
    "conflicts by sign": (mode("normalise_then_sum", TWO, conflict="signs"), BOTH),
    "conflicts by threshold": (mode("sum_then_normalise", TWO, conflict="threshold", conflict_threshold=0.6), []),
    "a limit": ({}, [STUDENT]),
    "two limits": (mode("sum_then_normalise"), BOTH),
    "at least": ({}, [STUDENT | {"direction": "at_least", "threshold": 0.1}, RUDE]),
    "flag": ({}, [STUDENT | {"measure": "flag"}]),
    "rectified": ({}, [{"bound": "rectified", "threshold": 0.25, "initial": 3.0}]),
    "costs without a floor": ({"cost_floor": 0.0}, BOTH),
    "a limit that costs nothing": ({}, [STUDENT | {"initial": 0.0}]),
    "split": ({"kl": {"coef": 0.3, "mode": "split"}, **mode("sum_then_normalise")}, BOTH),
    "no KL": ({"kl": 0.0}, BOTH),
    "k2 in the loss": ({"kl": {"coef": 0.3, "in_loss": 0.6, "estimator": "k2"}}, BOTH),
    "k3 in the loss": ({"kl": {"coef": 0.0, "in_loss": 0.6, "estimator": "k3"}}, []),
    "ratio_k3 in the loss": ({"kl": {"coef": 0.3, "in_loss": 0.6}}, BOTH),
    "entropy": (loss(entropy=0.4), BOTH),
    "dual clip": (loss(clip=0.1, clip_high=None, dual_clip=1.5), BOTH),
    "cispo": (loss(kind="cispo", ratio_cap=2.0), BOTH),
    "sapo": (loss(kind="sapo"), []),
    "gmpo": (loss(kind="gmpo"), []),
    "vespo": (loss(kind="vespo"), []),
    "dppo": (loss(kind="dppo_tv"), []),
    "answers' ratios": (loss(level="sequence", mean="row_mean", clip=0.5, clip_high=0.9), BOTH),
    "answers' ratios, cispo": (loss(kind="cispo", level="sequence"), []),
    "row mean": (loss(mean="row_mean"), []),
    "constant": (loss(mean="token_sum_constant"), []),
    "prompt mean": (loss(mean="prompt_mean"), BOTH),
    "sequence sum": (loss(mean="sequence_sum"), []),
    "no overlong penalty": ({"overlong": "none"}, []),
    "longer penalty": ({"overlong_share": 0.7}, BOTH),
    "cut answers teach nothing": ({"overlong": "mask", **loss(mean="prompt_mean")}, BOTH),
    "drop": ({"dead": "drop"}, []),
    "drop, row mean": ({"dead": "drop", **loss(mean="row_mean")}, [RUDE]),
    "keep": ({"dead": "keep"}, []),
    "skip with a bonus": ({"loss": {"entropy": 0.1}}, []),
    "two steps": ({"steps_per_experience": 2, **loss(mean="prompt_mean")}, BOTH),
    "two steps, dead ones dropped": ({"steps_per_experience": 2, "dead": "drop"}, []),
}
FOREIGN = {
    "weighed": ({}, BOTH),
    "tight cap": ({"correction": {"cap": 1.1}, "kl": {"coef": 0.3, "in_loss": 0.6}}, []),
    "product": ({"correction": {"drop": "product", "low": 0.4, "high": 2.0}}, BOTH),
    "geometric": ({"correction": {"drop": "geometric", "low": 0.7, "high": 1.4}, **loss(mean="row_mean")}, []),
    "mgda": (
        mode("mgda", TWO) | {"correction": {"drop": "geometric", "low": 0.7, "high": 1.4}, "overlong": "mask"},
        [],
    ),
    "drift": ({"correction": {"largest_drift": 0.4}, "kl": {"coef": 0.3, "in_loss": 0.6, "estimator": "k2"}}, BOTH),
}


class Scripted:
    """A generator that gives the answers above; `around` a policy, or with log-probabilities of its own making."""

    def __init__(self, template, around=None):
        self.template, self.around, self.foreign = template, around, around is not None

    def generate(self, prompts, n, sampling, seed):
        rng, convert = torch.Generator().manual_seed(0), self.template.tokenizer.convert_tokens_to_ids
        samples = []
        for i, words in enumerate(ANSWERS):
            ids = [self.template.end_id if word == "end" else convert(word) for word in words]
            noise = torch.randn(len(ids), generator=rng)
            logprobs = (-3 + noise).tolist()
            if self.around is not None:
                row = self.template.continue_with(prompts[i // n], ids)
                known = [one.item() for one in read(copy.deepcopy(self.around).double(), row)[0]]
                logprobs = [one + 0.5 * float(extra) for one, extra in zip(known, noise)]
            samples.append(Sample(i // n, prompts[i // n].ids, ids, logprobs, "length" if CUT[i] else "stop"))
        return samples


def scores(conversations):
    assert len(conversations) == len(ANSWERS)
    return {name: torch.tensor(values) for name, values in SCORES.items()}


def build(constraints=(), foreign=False, micro_tokens=64, recompute="auto", **settings):
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(["red green blue dark sea sky ?"], 64, "word")
    template = Template(tokenizer, max_length=32)
    policy, reference = (tiny_policy(len(tokenizer), hidden=16, heads=2, layers=1, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        policy.lm_head.weight.mul_(15)
    rollout = RolloutSettings(
        samples_per_prompt=K,
        sampling=Sampling(max_new_tokens=LONGEST),
        micro_tokens=micro_tokens,  # several batches to a step
        recompute=recompute,
    )
    source = Scripted(template, policy if foreign else None)
    collector = Collector(policy, lambda: nullcontext(reference), source, template, scores, rollout)
    limits = Limits([Constraint(ConstraintSettings(**({"measure": "logit"} | one))) for one in constraints])
    base = {"kl": {"coef": 0.3}}
    return Grpo(collector, GrpoSettings(**(base | settings)), OptimiserSettings(), limits), reference


PROMPTS = [Conversation.ask(text) for text in ASKED]


def read(policy, row):
    """Log-probability and entropy of each response token under a float64 network, with gradient."""
    logits = policy(input_ids=torch.tensor([row.ids])).logits[0]
    places = range(row.prompt_length, row.length)
    lines = [logits[t - 1].log_softmax(-1) for t in places]
    return [line[row.ids[t]] for line, t in zip(lines, places)], [-(line.exp() * line).sum() for line in lines]


def clamp(x, low, high):
    return max(low, min(high, x))


def sd(values):
    return stdev(values) if len(values) > 1 else 0.0


def known(values):
    return [x for x in values if not math.isnan(x)]


# Advantages.


def slow_table(method):
    """By objective the rewards of all answers that count, turned so that more is better."""
    settings = method.settings.objectives
    turn = {name: 1 if one.direction == "higher" else -1 for name, one in settings.items()}
    raw = {name: [turn[name] * x for x in SCORES[one.score or name]] for name, one in settings.items()}
    found = {}
    for place, (name, one) in enumerate(settings.items()):
        needs = {other: turn[other] * value for other, value in one.when.items()}
        if method.settings.scalarise.lexicographic:
            needs |= {other: turn[other] * settings[other].enough for other in list(settings)[:place]}
        column = []
        for i, x in enumerate(raw[name]):
            group = raw[name][i // K * K : i // K * K + K]
            # Thresholds are met in the precision of the scores.
            met = all(raw[other][i] >= value - 1e-7 for other, value in needs.items())
            if any(math.isnan(raw[other][i]) for other in needs):
                x = NAN
            elif not met and not math.isnan(x):
                x = min(0.0, *known(group))
            column.append(x if one.enough is None else min(x, turn[name] * one.enough))
        found[name] = column
    return found


def slow_extra(method, experience, reference):
    """Per answer what its distance to the reference and its length cost."""
    s, lam, found = method.settings, sum(method.limits.multipliers.values()), []
    frozen = copy.deepcopy(reference).double()
    for i, row in enumerate(experience.rows):
        ref = [one.item() for one in read(frozen, row)[0]]
        kl = sum(experience.old_logprobs[i, t].item() - one for t, one in enumerate(ref))
        extra = -s.kl.coef * (1 + lam if s.kl.mode == "split" else 1) * kl
        if s.overlong == "penalty":
            cache = s.overlong_share * LONGEST
            extra += clamp((LONGEST - cache - len(ref)) / cache, -1, 0)
        found.append(extra)
    return found


def slow_group(s, columns, weights, typed, floors, extra):
    """The advantages of one group under its mode, before anything is done to the batch."""
    main = next(name for name, w in typed.items() if w)
    alone = s.mode in ("normalise_then_sum", "variance_weighted", "mgda")
    scored = [
        any(typed[n] and len(known(c)) > 1 and not math.isnan(c[i]) for n, c in columns.items()) for i in range(K)
    ]
    columns = {n: list(c) for n, c in columns.items()}
    takers = {"mgda": dict.fromkeys(columns, 1.0)}.get(s.mode, {main: typed[main]}) if alone else {}
    for name, share in takers.items():
        columns[name] = [x + e / share for x, e in zip(columns[name], extra)]
    columns = {n: c for n, c in columns.items() if len(known(c)) > 1}
    spread = {n: sd(known(c)) for n, c in columns.items()}
    level = {n: mean(known(c)) for n, c in columns.items()}
    away = {n: [0.0 if math.isnan(x) else x - level[n] for x in c] for n, c in columns.items()}
    raw = [sum(weights[n] * away[n][i] for n in columns) for i in range(K)]
    if not alone and sum(scored) > 1:
        paid = mean(e for e, there in zip(extra, scored) if there)
        raw = [r + (e - paid if there else 0.0) for r, e, there in zip(raw, extra, scored)]
    floor = sum(weights[n] * floors[n] for n in columns)
    if s.mode == "sum_then_normalise":
        own = sd([r for r, there in zip(raw, scored) if there])
        return [r / (max(own, floor) + s.eps) for r in raw]
    if s.mode in ("normalise_then_sum", "mgda"):
        return [sum(weights[n] * away[n][i] / (max(spread[n], floors[n]) + s.eps) for n in columns) for i in range(K)]
    if s.mode == "variance_weighted":
        return [r / (sum(weights[n] * max(spread[n], floors[n]) for n in columns) + s.eps) for r in raw]
    if s.mode == "max_rl":
        total = sum(weights[n] * level[n] for n in columns)
        return [r / (total + s.eps) if total > 0 else 0.0 for r in raw]
    if s.mode == "leave_one_out":
        # Each against the mean of the others that were scored for the same.
        found = [0.0] * K
        for n, c in {**columns, "extra": [e if there else NAN for e, there in zip(extra, scored)]}.items():
            for i in range(K):
                others = known(c[:i] + c[i + 1 :])
                if others and not math.isnan(c[i]):
                    found[i] += weights.get(n, 1.0) * (c[i] - mean(others))
        return found
    return raw


def slow_advantages(method, extra, live, weights=None):
    """Per answer the objectives' advantage, whether it is learned from, and whether its group is dead."""
    s, settings, table = method.settings.scalarise, method.settings.objectives, slow_table(method)
    typed = {name: one.weight for name, one in settings.items()}
    floors = {name: s.std_floor if one.std_floor is None else one.std_floor for name, one in settings.items()}
    weights, values, keep, dead, among = weights or typed, [], [], [], []
    for p in range(len(ASKED)):
        own = {name: column[p * K : p * K + K] for name, column in table.items()}
        alive = any(typed[n] and sd(known(c)) >= s.dead_below and len(known(c)) > 1 for n, c in own.items())
        group = slow_group(s, own, weights, typed, floors, extra[p * K : p * K + K])
        alone = {n: slow_alone(s, c, floors[n]) for n, c in own.items()}
        for i in range(K):
            scored = any(typed[n] and not math.isnan(c[i]) and len(known(c)) > 1 for n, c in own.items())
            pulls = [weights[n] * a[i] for n, a in alone.items()]
            size = sum(map(abs, pulls))
            agree = abs(sum(pulls)) / size if size else 1.0
            least = {"none": 0.0, "signs": 1 - 1e-9, "threshold": s.conflict_threshold}[s.conflict]
            keep.append(scored and (alive or live[p]) and agree >= least)
            dead.append(scored and not (alive or live[p]))
            among += [group[i]] if scored and alive else []
        values += group
    if s.mode == "batch" or s.batch_normalise:
        least = sum(w * floors[n] for n, w in typed.items()) if s.mode == "batch" else 0.0
        values = [v / (max(sd(among), least) + s.eps) for v in values]
    bound = s.clip or math.inf
    return [clamp(v, -bound, bound) if k else 0.0 for v, k in zip(values, keep)], keep, dead


def slow_alone(s, column, floor):
    if len(known(column)) < 2:
        return [0.0] * K
    centre, spread = mean(known(column)), sd(known(column))
    return [0.0 if math.isnan(x) else (x - centre) / (max(spread, floor) + s.eps) for x in column]


def slow_costs(constraint):
    """Per answer the cost whose mean has the policy gradient of the bound; the window holds these answers alone."""
    s, kappa = constraint.settings, constraint.kappa()
    sign = 1.0 if s.direction == "at_most" else -1.0
    costs = [sign * float(x > 0) if s.measure == "flag" else sign * x for x in SCORES[s.score]]
    if s.bound == "rectified":
        return [max(c - s.threshold, 0.0) for c in costs]
    if s.bound == "mean":
        return costs
    mu, spread = mean(costs), sd(costs)
    return [c + kappa / (2 * spread) * max(c - mu, -spread / kappa) ** 2 for c in costs]


def slow_relative(method, costs):
    s, found = method.settings.scalarise, []
    for p in range(len(ASKED)):
        own = costs[p * K : p * K + K]
        for i, c in enumerate(own):
            if s.mode == "leave_one_out":
                value = c - mean(own[:i] + own[i + 1 :])
            elif s.mode == "center":
                value = c - mean(own)
            else:
                value = (c - mean(own)) / (max(sd(own), method.settings.cost_floor) + s.eps)
            found.append(clamp(value, -(s.clip or math.inf), s.clip or math.inf))
    return found


def slow_mixture(method, experience, reference):
    """Per answer (A_r - sum_j lambda_j A_j) / (1 + sum_j lambda_j), whether it is learned from, and MGDA's weights."""
    s, multipliers = method.settings, method.limits.multipliers
    costs = {one.name: slow_costs(one) for one in method.limits.constraints}
    unscaled = s.scalarise.mode in ("center", "leave_one_out")
    varies = {name: [sd(c[p * K : p * K + K]) > s.scalarise.dead_below for p in range(4)] for name, c in costs.items()}
    live = [unscaled or any(multipliers[n] > 0 and v[p] for n, v in varies.items()) for p in range(4)]
    weights = slow_common_descent(method, experience) if s.scalarise.mode == "mgda" else None
    values, keep, dead = slow_advantages(method, slow_extra(method, experience, reference), live, weights)
    if s.dead != "drop":
        keep = [one or other for one, other in zip(keep, dead)]
    if s.overlong == "mask":
        keep = [one and not cut for one, cut in zip(keep, CUT)]
    relative = {name: slow_relative(method, c) for name, c in costs.items()}
    total = 1 + sum(multipliers.values())
    mixed = [(a - sum(multipliers[n] * r[i] for n, r in relative.items())) / total for i, a in enumerate(values)]
    return mixed, keep


# Losses.


def slow_weights(method, experience):
    """Per answer the weights of its tokens, and whether it is kept: those of another sampler."""
    s, weights, keep = method.settings.correction, [], []
    for i, row in enumerate(experience.rows):
        n = len(row.response_ids)
        if experience.sampler_logprobs is None:
            weights, keep = [*weights, [1.0] * n], [*keep, True]
            continue
        away = [(experience.old_logprobs[i, t] - experience.sampler_logprobs[i, t]).item() for t in range(n)]
        ratio = {"none": 1.0, "product": math.exp(sum(away)), "geometric": math.exp(sum(away) / n)}[s.drop]
        keep.append(s.drop == "none" or s.low <= ratio <= s.high)
        weights.append([min(s.cap, math.exp(x)) for x in away])
    return weights, keep


def slow_token(s, t, logps, olds, a):
    """The loss of token t of an answer; with ratios of answers each token has a share of the answer's gradient."""
    away = [logp - old for logp, old in zip(logps, olds)]
    log_ratio = sum(away) / len(away) if s.level == "sequence" else away[t]
    ratio, logp = log_ratio.exp(), logps[t]
    if s.kind == "clip":
        high = s.clip if s.clip_high is None else s.clip_high
        found = -torch.minimum(ratio * a, ratio.clamp(1 - s.clip, 1 + high) * a)
        return found.clamp(max=-s.dual_clip * a) if s.dual_clip and a < 0 else found
    if s.kind == "cispo":
        return -min(ratio.item(), s.ratio_cap) * a * logp
    if s.kind == "sapo":
        tau = 1.0 if a > 0 else 1.05
        return -4 / tau / (1 + (-tau * (ratio - 1)).exp()) * a
    if s.kind == "gmpo":
        bounded = [x.clamp(max=0.4) if a > 0 else x.clamp(min=-0.4) for x in away]
        return -a * (sum(bounded) / len(bounded)).exp()
    if s.kind == "vespo":
        w, (power, decay) = math.exp(sum(x.item() for x in away)), (2, 3) if a > 0 else (3, 2)
        return -(math.exp(decay) * w**power * math.exp(-decay * w)) * a * logp
    assert s.kind == "dppo_tv"
    moved = logp.exp().item() - math.exp(olds[t])
    cut = moved > 0.2 if a > 0 else -moved > 0.2
    return (0.0 if cut else -ratio * a) + 1e-3 * away[t] ** 2


def slow_answer(method, policy, experience, i, a, weights):
    """Of answer i the surrogate, the KL and the entropy at each token, weighed as those of another sampler."""
    s, row = method.settings, experience.rows[i]
    logps, entropies = read(policy, row)
    olds = [one.item() for one in experience.old_logprobs[i, : len(logps)]]
    if s.correction.largest_drift is not None:
        sampler = experience.old_logprobs if experience.sampler_logprobs is None else experience.sampler_logprobs
        drift = mean(sampler[i, t].item() - logps[t].item() for t in range(len(logps)))
        weights = [0.0 if a < 0 and drift > s.correction.largest_drift else w for w in weights]
    found = []
    for t, (logp, entropy) in enumerate(zip(logps, entropies)):
        d = logp - experience.ref_logprobs[i, t].item()
        k3 = (-d).exp() - 1 + d
        kl = {"k2": d**2 / 2, "k3": k3, "ratio_k3": (logp - olds[t]).exp() * k3}[s.kl.estimator]
        surrogate = weights[t] * slow_token(s.loss, t, logps, olds, a)
        found.append(surrogate + s.kl.in_loss * weights[t] * kl - s.loss.entropy * entropy)
    return found


def slow_mean(kind, lines):
    """The losses of a step, by answer, brought to one number."""
    per_answer = {i: sum(line) for i, line in lines.items()}
    n, total = len(lines), sum(per_answer.values())
    if kind == "row_mean":
        return sum(x / len(lines[i]) for i, x in per_answer.items()) / n
    if kind == "token_sum_constant":
        return total / (n * LONGEST)
    if kind == "sequence_sum":
        return total / n
    if kind == "prompt_mean":
        prompts = {i // K for i in lines}
        own = [[i for i in lines if i // K == p] for p in prompts]
        return sum(sum(per_answer[i] for i in rows) / sum(len(lines[i]) for i in rows) for rows in own) / len(own)
    return total / sum(map(len, lines.values()))


def slope(policy, value):
    policy.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def slow_common_descent(method, experience):
    """By objective the weight of the shortest combination of two gradients; one that is only watched has none."""
    s, table = method.settings, slow_table(method)
    speaking, gradients = [name for name, one in s.objectives.items() if one.weight], []
    weights, keep = slow_weights(method, experience)
    bare = GrpoSettings(loss={"mean": s.loss.mean})
    for name in speaking:
        floor = s.scalarise.std_floor
        a = [x for p in range(4) for x in slow_alone(s.scalarise, table[name][p * K : p * K + K], floor)]
        policy = copy.deepcopy(method.parts["policy"]).double()
        view = copy.copy(method)
        view.settings = bare.model_copy(update={"loss": s.loss.model_copy(update={"entropy": 0.0})})
        rows = [i for i, kept in enumerate(keep) if kept and not (s.overlong == "mask" and CUT[i])]
        lines = {i: slow_answer(view, policy, experience, i, a[i], weights[i]) for i in rows}
        gradients.append(torch.cat([g.flatten() for g in slope(policy, slow_mean(s.loss.mean, lines)).values()]))
    one, two = gradients
    share = clamp(float((two - one) @ two / ((one - two) @ (one - two))), 0, 1)
    return dict.fromkeys(s.objectives, 0.0) | dict(zip(speaking, (share, 1 - share)))


def fast_gradient(method, batches):
    """The gradients of an optimiser step, which is then taken back, and its numbers."""
    policy = method.parts["policy"]
    before, found = copy.deepcopy(policy.state_dict()), {}
    step = Step(policy, OptimiserSettings(max_grad_norm=1e9), 10)
    clip = step._clip

    def keep():
        found.update({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
        return clip()

    step._clip = keep
    numbers = step.step(
        batches,
        lambda batch: method.loss("policy", batch),
        lambda batch: method.counts("policy", batch),
        method.weights,
    )
    policy.load_state_dict(before)
    return found, numbers


def moved(method):
    """A policy that has learned something since: ratios leave their clips."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.parts["policy"].parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))


def compare(case, constraints, foreign=False):
    method, reference = build(constraints, foreign, **case)
    learnable = method.collect(PROMPTS, 1)
    experience = learnable.experience
    assert experience.truncated.tolist() == CUT
    mixed, keep = slow_mixture(method, experience, reference)
    weights, whole = slow_weights(method, experience)
    keep = [one and other for one, other in zip(keep, whole)]
    assert learnable.kept.tolist() == keep
    assert [a for a, k in zip(learnable.advantages.tolist(), keep) if k] == pytest.approx(
        [a for a, k in zip(mixed, keep) if k], **CLOSE
    )
    moved(method)
    portions, steps = (
        method.mini_batches(learnable, torch.Generator().manual_seed(0)),
        method.settings.steps_per_experience,
    )
    assert len(portions) == steps
    order = torch.randperm(len(ASKED), generator=torch.Generator().manual_seed(0)).tolist()
    for place, batches in enumerate(portions):
        rows = [p * K + j for p in order[place::steps] for j in range(K) if keep[p * K + j]]
        policy = copy.deepcopy(method.parts["policy"]).double()
        lines = {i: slow_answer(method, policy, experience, i, mixed[i], weights[i]) for i in rows}
        expected = slope(policy, slow_mean(method.settings.loss.mean, lines))
        found, _ = fast_gradient(method, batches)
        assert found.keys() == expected.keys()
        for name, values in found.items():
            # Sums over a vocabulary and twelve answers in float32: relative to the largest entry.
            bound = 1e-4 * float(expected[name].abs().max())
            torch.testing.assert_close(values.double(), expected[name], rtol=0, atol=bound)
    return method, portions


@pytest.mark.parametrize("case", CASES)
def test_collecting_and_learning_equal_the_slow_form(case):
    compare(*CASES[case])


@pytest.mark.parametrize("case", FOREIGN)
def test_answers_of_another_sampler_are_weighed(case):
    compare(*FOREIGN[case], foreign=True)


def test_a_sampler_taken_for_the_policy_is_not_corrected_twice():
    method, _ = build([STUDENT], foreign=True, recompute="never")
    learnable = method.collect(PROMPTS, 1)
    assert learnable.experience.sampler_logprobs is None
    assert torch.equal(learnable.correction, learnable.experience.response_mask.float())
    weighed, _ = build([STUDENT], foreign=True)
    corrected = weighed.collect(PROMPTS, 1)
    assert torch.equal(corrected.experience.sampler_logprobs, learnable.experience.old_logprobs)
    assert not torch.equal(corrected.correction, learnable.correction)


@pytest.mark.parametrize("case", ["two limits", "ratio_k3 in the loss", "entropy", "mgda", "prompt mean"])
def test_prompts_read_once_give_the_same_gradient(case):
    settings, constraints = CASES[case]
    found = {}
    for share in ("auto", "off"):
        # Room for all answers to two prompts, where sharing pays.
        method, _ = build(constraints, micro_tokens=72, share_prompt=share, **settings)
        learnable = method.collect(PROMPTS, 1)
        moved(method)
        (batches,) = method.mini_batches(learnable, torch.Generator().manual_seed(0))
        read_once = [
            method.reader._shares(one.tokens.saving, one.tokens.longest) for one in batches if hasattr(one, "tokens")
        ]
        assert any(read_once) == (share == "auto")
        found[share] = fast_gradient(method, batches)[0]
    for name, values in found["off"].items():
        # The same sums in float32, in another order.
        torch.testing.assert_close(found["auto"][name], values, rtol=0, atol=1e-5 * float(values.abs().max()))


def test_the_bounds_of_the_tests_above_bind():
    method, portions = compare(*CASES["dual clip"])
    _, numbers = fast_gradient(method, portions[0])
    assert numbers["clip_fraction/good"] > 0
    assert numbers["clip_fraction/bad"] > 0
    method, _ = build(CASES["mgda"][1], **CASES["mgda"][0])
    experience = method.collect(PROMPTS, 1).experience
    shares = slow_common_descent(method, experience)
    assert all(0.05 < share < 0.95 for share in shares.values())
    assert not all(build(**CASES["conflicts by sign"][0])[0].collect(PROMPTS, 1).kept)
    for case in ("product", "geometric"):
        assert 0 < build(foreign=True, **FOREIGN[case][0])[0].collect(PROMPTS, 1).kept.sum() < len(ANSWERS)
