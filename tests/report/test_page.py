import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from holdfast.errors import UserError
from holdfast.report.page import SECTIONS, changes, flat, render, samples
from holdfast.report.read import read

VOID = {"meta", "br", "link", "img"}


class Outline(HTMLParser):
    """The tags, attributes and sections of a page; an element closed out of turn is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


@pytest.fixture(scope="module")
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out") / "deep" / "page.html"
    assert render(finished, out) == out
    return out.read_text(encoding="utf-8")


def test_sections_stand_in_order_and_the_contents_lead_to_them(page: str) -> None:
    outline = Outline(page)
    sections = re.findall(r'<section id="(\w+)">', page)
    assert sections == [key for key, *_ in SECTIONS]
    assert [link for link in outline.links if link[1:] in sections] == [f"#{key}" for key in sections]


def test_the_page_needs_no_network_and_no_script(page: str) -> None:
    outline = Outline(page)
    assert all(link.startswith("#") for link in outline.links)
    assert "script" not in outline.tags
    assert "link" not in outline.tags
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_links_inside_the_page_find_one_target_each(page: str) -> None:
    outline = Outline(page)
    assert len(outline.ids) == len(set(outline.ids))
    used = outline.links + re.findall(r"url\(([^)]*)\)", page)
    assert {link[1:] for link in used} <= set(outline.ids)


def test_what_models_and_files_say_is_escaped(run_folder: Path) -> None:
    evil = "<script>alert(1)</script><img src=x>"
    summary = json.loads((run_folder / "summary.json").read_text())
    summary |= {"method": evil, "seed": evil}
    summary["examples"] = [{"prompt": evil, "before": evil, "after": evil, "kind": evil}]
    (run_folder / "summary.json").write_text(json.dumps(summary))
    (run_folder / "config.yaml").write_text(f'name: "{evil}"\n')
    (run_folder / "fingerprint.json").write_text(json.dumps({evil: evil}))
    (run_folder / "samples.jsonl").write_text(json.dumps({"prompt": [evil], "response": evil, evil: 1.0}) + "\n")
    certificate = {"verdict": "CERTIFIED", "claim": evil, "limits": [evil], "assumptions": [evil]}
    certificate["constraints"] = [{"name": evil, "method": evil}]
    (run_folder / "certificate.json").write_text(json.dumps({"predicate": certificate}))
    metrics = [{"stage": evil, "step": i, evil: 1.0} for i in (1, 2)]
    metrics += [{"stage": "policy", "step": i, f"cost/{evil}": 1.0} for i in (1, 2)]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    scores = [{"when": evil, "kind": evil, "reward": 1.0, "cost": 2.0}]
    (run_folder / "scores.jsonl").write_text(json.dumps(scores[0]) + "\n")
    page = render(run_folder).read_text(encoding="utf-8")
    assert page.count("&lt;script&gt;") > 15
    assert not {"script", "img"} & set(Outline(page).tags)


def test_the_headline_gives_verdict_counts_bound_limit_and_confidence(page: str) -> None:
    head = page[page.index("<header>") : page.index("<nav>")]
    for text in (
        "CERTIFIED",
        "4.5%",
        "5%",
        "600 held-out prompts",
        "18 replies",
        "95% confidence",
        "7 min 12 s",
    ):
        assert text in head


def test_changes_carry_their_intervals(finished: Path) -> None:
    rows = {row.name: row for row in changes(read(finished))}
    harm = rows["True harm"]
    assert (harm.before, harm.after, harm.difference) == ("37.2%", "2.8%", "\u221234.4 points")
    assert harm.after_range == "1.5% to 4.1%, n\u202f=\u202f600"
    assert harm.remark == "intervals apart"
    assert rows["Over-refusal"].remark == "intervals overlap"
    assert rows["Over-refusal"].difference == "+1.3 points"
    assert rows["KL from the start (nats)"].after_range == ""


def test_measures_unknown_here_are_shown_too(run_folder: Path) -> None:
    (run_folder / "summary.json").write_text(json.dumps({"win_rate_before": 0.5, "win_rate_after": 0.75}))
    (row,) = changes(read(run_folder))
    assert (row.name, row.before, row.after, row.difference) == ("Win rate", "0.500", "0.750", "+0.250")


def test_curves_are_all_there(page: str) -> None:
    policy = page[page.index('<section id="policy">') : page.index('<section id="replies">')]
    # reward, help, cost + bound + limit, harm + refusal + cut off, multiplier, KL, two of length; seven of health; two
    # sources in three panels; weight of the KL, two moments, clip, pull, two critics twice; one critic twice before
    assert policy.count('class="curve"') == 12 + 7 + 6 + 9 + 2
    assert policy.count('class="part"') == 5
    models = page[page.index('<section id="models">') : page.index('<section id="certificate">')]
    # loss and held-out loss of three stages, the sign term of cost, two held-out accuracies
    assert models.count('class="curve"') == 9


def test_the_certificate_says_what_it_does_not_say(page: str) -> None:
    part = page[page.index('<section id="certificate">') : page.index('<section id="samples">')]
    assert "What it does not say" in part
    assert "claim concerns scorer output, not human judgement" in part
    assert "18 of 600" in part
    assert "clopper pearson" in part


def test_a_page_of_two_hundred_steps_is_small(page: str) -> None:
    assert len(page.encode()) < 1_000_000


def test_long_runs_stay_small(run_folder: Path) -> None:
    rows = (run_folder / "metrics.jsonl").read_text().splitlines()
    policy = [json.loads(row) for row in rows if '"policy"' in row]
    longer = [row | {"step": row["step"] + 200 * i} for i in range(20) for row in policy]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in longer))
    with (run_folder / "samples.jsonl").open("a") as file:
        file.writelines(json.dumps({"prompt": "?", "response": "word " * 20_000}) + "\n" for _ in range(50))
    assert render(run_folder).stat().st_size < 2_000_000


def test_samples_say_how_many_there_are_and_where_text_was_cut(run_folder: Path) -> None:
    found = samples(read(run_folder))
    assert (len(found["shown"]), found["total"]) == (60, 150)
    assert found["shown"][-1]["where"] == "policy 150"
    assert found["shown"][0]["numbers"] == [("reward", "0.500"), ("cost", "\u22121.25")]
    (run_folder / "samples.jsonl").write_text(json.dumps({"prompt": "p", "response": "x" * 2500}) + "\n")
    (row,) = samples(read(run_folder))["shown"]
    assert row["response"].endswith("x [... 500 more characters in the run folder]")


@pytest.mark.parametrize(
    "absent, sections",
    [
        ("fingerprint.json", {"environment"}),
        ("*[cm]s.jsonl", {"policy", "models", "numbers"}),
        ("summary.json", {"changes", "comparisons", "examples", "offline", "recovery"}),
        ("scores.jsonl", {"replies"}),
        ("samples.jsonl", {"samples"}),
        ("certificate.json", {"certificate"}),
        ("audit-*.json", {"scores"}),
    ],
)
def test_a_missing_file_leaves_its_sections_out_with_a_note(run_folder: Path, absent: str, sections: set[str]) -> None:
    for file in run_folder.glob(absent):
        file.unlink()
    page = render(run_folder).read_text(encoding="utf-8")
    left = {key for key, *_ in SECTIONS} - sections
    assert set(re.findall(r'<section id="(\w+)">', page)) == left
    footer = page[page.index("<footer>") :]
    assert all(title in footer for key, title, *_ in SECTIONS if key in sections)
    Outline(page)


def test_a_configuration_alone_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    out = render(tmp_path)
    assert out == tmp_path / "report.html"
    page = out.read_text(encoding="utf-8")
    assert "NOT TESTED" in page
    assert re.findall(r'<section id="(\w+)">', page) == ["configuration"]


def test_a_first_step_is_drawn(run_folder: Path) -> None:
    (run_folder / "metrics.jsonl").write_text('{"stage": "policy", "step": 1, "kl": 0.0}\n')
    assert render(run_folder).read_text(encoding="utf-8").count('class="curve"') == 1


def test_a_broken_folder_writes_no_page(run_folder: Path) -> None:
    (run_folder / "metrics.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1"):
        render(run_folder)
    assert not (run_folder / "report.html").exists()


def test_nested_names_are_dotted() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": [2]}) == [("a.b.c", "1"), ("d", "[2]")]
