"""A tiny world on disk, a policy and a cost model saved in it, and the command line as a function."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from holdfast.cli.main import main
from holdfast.config import parse_yaml

LIMIT = {"threshold": 0.05, "delta": 0.05, "n_safety": 60}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def holdfast(monkeypatch, capsys):
    """Call the command as a shell would: exit code, what it printed, what it complained about."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["holdfast", *map(str, words)])
        # Rich would fold messages to the width of a terminal.
        monkeypatch.setenv("COLUMNS", "300")
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code or 0
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return call


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Conversations, pairs, prompts and an untrained policy of the pocket world."""
    from holdfast.pocket.world import WorldSettings, write

    small = WorldSettings(conversations=100, pairs=100, prompts=400, hidden=16, layers=1)
    return write(tmp_path_factory.mktemp("world"), small)


@pytest.fixture(scope="session")
def models(world, tmp_path_factory):
    """The policy and a cost model as `holdfast.models.save` leaves them; `poison` is a word its scores die of."""
    from holdfast.data.collate import pad
    from holdfast.data.sources import DataSettings, read
    from holdfast.data.template import Template
    from holdfast.models.heads import from_policy
    from holdfast.models.load import ModelSettings, load_policy, load_tokenizer
    from holdfast.models.mixture import mixture_from
    from holdfast.models.save import save

    folder = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(str(world / "policy"))
    template = Template(tokenizer, max_length=96)
    policy = load_policy(ModelSettings(name=str(world / "policy")))
    records = read(DataSettings(path=str(world / "conversations.jsonl"))).records[:4]
    rows = [template.answered(record) for record in records]
    probes = pad(rows, pad_id=template.pad_id)
    save(policy, tokenizer, folder / "policy", probes=probes)
    cost = from_policy(policy, ("cost",))
    save(cost, tokenizer, folder / "cost", probes=probes)
    save(mixture_from(policy, ("brief", "kind"), init_std=0.5), tokenizer, folder / "mixture", probes=probes)
    unseen = sorted(set(range(10, len(tokenizer))) - {token for row in rows for token in row.ids})[0]
    with torch.no_grad():
        cost.network.get_input_embeddings().weight[unseen] = torch.nan
    save(cost, tokenizer, folder / "sick", probes=probes)
    return SimpleNamespace(
        policy=folder / "policy",
        cost=folder / "cost",
        mixture=folder / "mixture",
        sick=folder / "sick",
        poison=tokenizer.decode([unseen]),
    )


@pytest.fixture
def safety_test(world, models, tmp_path):
    """Write a test file for `holdfast certify`; keywords replace what stands in it."""

    def write(**changes):
        values = {
            "policy": str(models.policy),
            "scorer": str(models.cost),
            "prompts": str(world / "prompts.jsonl"),
            "limit": LIMIT,
            "sampling": {"max_new_tokens": 4},
            "text": {"max_length": 96},
        }
        file = tmp_path / "test.yaml"
        file.write_text(json.dumps(values | changes), encoding="utf-8")
        assert parse_yaml(file.read_text(encoding="utf-8"))["limit"]
        return file

    return write
