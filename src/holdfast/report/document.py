"""The frame of every page: one HTML document from a heading, facts and sections."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from holdfast.report.words import Finding

# Key (also the name of the macro that writes it), title, and what it shows.
Section = tuple[str, str, Any]


def document(
    house: str,
    name: str,
    finding: Finding,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    left_out: Sequence[str] = (),
) -> str:
    """Return a self-contained page: `house` above it, the finding as its headline, facts, then the sections.

    left_out: what the page has no section for, and why.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        house=house, name=name, finding=finding, facts=facts, sections=sections, left_out=left_out
    )
