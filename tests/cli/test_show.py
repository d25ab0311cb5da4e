"""What the terminal shows at the end of a run, from its summary alone."""

from pathlib import Path

from holdfast.cli.show import outcome


def estimate(value, half=0.02):
    return {"value": value, "low": value - half, "high": value + half, "n": 90}


def test_weak_to_strong_ends_with_its_levels_and_what_was_recovered(capsys):
    soft = {
        "value": {"value": 0.25, "low": -0.05, "high": 0.5, "n": 90},
        "weak": estimate(0.64),
        "student": estimate(0.66),
        "ceiling": estimate(0.72),
        "gain": estimate(0.02, 0.03),
    }
    hard = soft | {"value": None, "student": estimate(0.5)}
    report = {
        "items": {"test": 1600},
        "seeds": [0, 1],
        "students": {"soft": {"recovery": soft}, "hard": {"recovery": hard}},
    }
    head = {"method": "weak_to_strong", "task": "reward", "verdict": None, "reason": "no_policy"}
    outcome(head | {"weak_to_strong": report, "seconds": 1.0, "peak_rss_mib": 2.0}, Path("page.html"))
    printed = capsys.readouterr().out
    rows = {line.split()[1]: line.split("\u2502")[2:-1] for line in printed.splitlines() if line.startswith("\u2502")}
    assert {name: [cell.strip() for cell in cells] for name, cells in rows.items()} == {
        "supervisor": ["64.0 [62.0, 66.0]", "", ""],
        "soft": ["66.0 [64.0, 68.0]", "2.0 [-1.0, 5.0]", "25.0 [-5.0, 50.0]"],
        "hard": ["50.0 [48.0, 52.0]", "2.0 [-1.0, 5.0]", "n/a"],
        "ceiling": ["72.0 [70.0, 74.0]", "", ""],
    }
    assert "weak_to_strong, reward, seeds 0, 1, 1,600 test items" in printed
    assert "No policy was trained, so there is nothing to test." in printed
