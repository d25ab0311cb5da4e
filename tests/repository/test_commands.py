"""The commands and their options are a promise: a change here is a change for every user, so it is made twice."""

import typer

from holdfast.cli.main import app

COMMANDS = {
    "demo": "[overrides] --method --out/-o --overwrite --seed",
    "run": "recipe [overrides] --out/-o --overwrite",
    "sweep": "recipe [overrides] --judge --launcher --out/-o --over --seeds",
    "pareto": "[folder] --judge",
    "study": "name --check --out/-o --quick --seeds",
    "score": "model conversations --audit --max-length --out/-o",
    "generate": "model prompts --max-new-tokens --out/-o --seed --temperature -n",
    "verify": "[folder]",
    "report": "[folder] --out/-o",
    "env": "",
    "data check": "paths --format --max-length --tokenizer",
    "certify plan": "test [overrides]",
    "certify run": "test [overrides] --out/-o",
    "certify explain": "[folder]",
}


def commands(command, before=()):
    """(name, command) of every command below, without the groups."""
    if not hasattr(command, "commands"):
        yield " ".join(before), command
        return
    for name, inner in command.commands.items():
        yield from commands(inner, (*before, name))


def signature(command):
    """Arguments in their order, optional ones in brackets, then the options by name."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = sorted("/".join([*p.opts, *p.secondary_opts]) for p in command.params if p not in arguments)
    return " ".join([*(p.name if p.required else f"[{p.name}]" for p in arguments), *options])


FOUND = dict(commands(typer.main.get_command(app)))


def test_commands_are_the_promised_ones():
    assert {name: signature(command) for name, command in FOUND.items()} == COMMANDS


def test_every_command_and_option_explains_itself():
    for name, command in FOUND.items():
        assert command.help, name
        assert all(parameter.help for parameter in command.params), name
