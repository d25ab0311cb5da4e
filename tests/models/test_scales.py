import json
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from holdfast.errors import UserError
from holdfast.models.adapters import AdapterSettings
from holdfast.models.heads import freeze_backbone, from_policy, load_score_model, with_score_adapter
from holdfast.models.load import ModelSettings
from holdfast.models.scales import Borders, LabelScale, read_link, read_scales, write_scales
from holdfast.models.tiny import tiny_llava, tiny_policy

NAMES = ("verbosity", "correctness", "preference")
# Not in the order of the alphabet, in which configuration files keep their tables.
SCALES = {
    "verbosity": LabelScale(low=0, high=4, higher_is_better=False),
    "correctness": LabelScale(low=1, high=5),
}
TOLD = "verbosity (0 to 4, lower is better), correctness (1 to 5)"


def build(names=NAMES, kind="llama"):
    return from_policy(tiny_llava(30, 5) if kind == "llava" else tiny_policy(30), names, init_std=0.5)


def test_a_scale_leads_there_and_back():
    scale = LabelScale(low=1, high=5)
    assert [scale.share(raw) for raw in (1, 2, 5)] == [0.0, 0.25, 1.0]
    turned = LabelScale(low=1, high=5, higher_is_better=False)
    assert [turned.share(raw) for raw in (1, 2, 5)] == [1.0, 0.75, 0.0]
    for one in (scale, turned):
        assert one.raw(one.share(3.7)) == pytest.approx(3.7)
    with pytest.raises(ValidationError, match="rises from low to high, got low 4 and high 4"):
        LabelScale(low=4, high=4)


@pytest.mark.parametrize("kind", ["llama", "llava"])
def test_scales_are_saved_with_the_model(tmp_path, kind):
    model = build(kind=kind)
    write_scales(model.config, model.names, SCALES, "logit")
    model.save_pretrained(tmp_path)
    again = load_score_model(ModelSettings(name=str(tmp_path)))
    assert list(read_scales(again.config, again.names).items()) == list(SCALES.items())
    assert read_link(again.config) == "logit"
    assert again.borders is None


READ = """
import json
import sys
from holdfast.models.heads import load_score_model
from holdfast.models.load import ModelSettings
from holdfast.models.scales import read_scales
model = load_score_model(ModelSettings(name=sys.argv[1]))
print(json.dumps([list(read_scales(model.config, model.names)), model.borders().tolist()]))
"""


def test_an_adapter_brings_scales_and_borders_into_a_new_process(tmp_path):
    base = tiny_policy(30)
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = base.config.name_or_path = str(tmp_path / "base")
    model = with_score_adapter(from_policy(base, NAMES, share=True), AdapterSettings(rank=2))
    write_scales(model.config, model.names, SCALES)
    model.borders = Borders([0.0, 0.5, 3.0])
    model.save_pretrained(tmp_path / "adapter")
    command = [sys.executable, "-c", READ, str(tmp_path / "adapter")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names, borders = json.loads(done.stdout)
    assert names == ["verbosity", "correctness"]
    assert borders == pytest.approx([0.0, 0.5, 3.0], abs=1e-6)


def test_a_model_keeps_its_scales():
    model = build()
    write_scales(model.config, model.names, SCALES)
    write_scales(model.config, model.names, SCALES)  # the same once more: training goes on
    other = {**SCALES, "correctness": LabelScale(low=0, high=10)}
    with pytest.raises(UserError, match=r"trained on the labels verbosity \(0 to 4, lower is better\), correctness"):
        write_scales(model.config, model.names, other)
    with pytest.raises(UserError, match=r"link identity\) and is now given .*link logit"):
        write_scales(model.config, model.names, SCALES, "logit")
    assert list(read_scales(model.config, model.names)) == ["verbosity", "correctness"]


def test_labels_in_another_order_are_refused_and_both_orders_named():
    model = build()
    turned = dict(reversed(SCALES.items()))
    both = "scores verbosity, correctness, preference and the labels are correctness, verbosity"
    with pytest.raises(UserError, match=both):
        write_scales(model.config, model.names, turned)
    with pytest.raises(UserError, match="the labels are verbosity, tone"):
        write_scales(model.config, model.names, {"verbosity": SCALES["verbosity"], "tone": SCALES["correctness"]})
    write_scales(model.config, model.names, SCALES)
    with pytest.raises(UserError, match="scores correctness, verbosity and the labels are verbosity, correctness"):
        read_scales(model.config, ("correctness", "verbosity"))


def test_borders_rise_whatever_is_learned():
    borders = Borders([0.0, 1.0, 1.5])
    assert borders().tolist() == pytest.approx([0.0, 1.0, 1.5], abs=1e-6)
    for extreme in (-50.0, 50.0):
        with torch.no_grad():
            borders.gaps.fill_(extreme)
        found = borders()
        assert found[0] == 0
        assert found.isfinite().all()
        assert (found.diff() > 0.005).all()
    for wrong in ([], [1.0, 2.0], [0.0, 2.0, 1.0]):
        with pytest.raises(ValueError, match="borders begin with 0"):
            Borders(wrong)


def test_a_step_moves_borders_far_and_their_gradient_stays_small():
    borders = Borders([0.0, 1.0, 2.0])
    before = borders().detach()
    optimiser = torch.optim.AdamW(borders.parameters(), lr=1e-3)
    borders()[1].backward()
    # d softplus at the inverse of 0.99: the derivative without the factor.
    assert borders.gaps.grad[0].item() == pytest.approx(1 - torch.exp(torch.tensor(-0.99)).item(), abs=1e-6)
    optimiser.step()
    moved = float((borders() - before).detach()[1])
    assert -0.03 < moved < -0.01, "thirty times the learning rate, through softplus"


def test_borders_are_learned_saved_and_copied_with_their_model(tmp_path):
    model = build(("cost",))
    model.borders = Borders([0.0, 0.25, 2.0])
    assert {"borders.gaps"} == {name for name, _ in model.named_parameters() if name.startswith("borders")}
    model.save_pretrained(tmp_path)
    again = load_score_model(ModelSettings(name=str(tmp_path)))
    assert again.borders().tolist() == pytest.approx([0.0, 0.25, 2.0], abs=1e-6)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_frozen_backbone_leaves_the_head_to_learn(adapted):
    model = build()
    if adapted:
        model = with_score_adapter(model, AdapterSettings(rank=2))
    assert freeze_backbone(model) is model
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trainable
    assert all("score" in name for name in trainable)
