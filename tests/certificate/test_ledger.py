import multiprocessing

import pytest

from holdfast.certificate.ledger import START, Ledger, read, state
from holdfast.certificate.records import canonical, digest
from holdfast.errors import UserError

FOLD, OTHER = "f" * 64, "e" * 64


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl", clock=lambda: "2026-01-05T10:00:00+00:00")


def attempt(ledger, verdict, schedule="single_use"):
    got = ledger.open(FOLD, "plan", "policy", 0.05, schedule)
    ledger.close(FOLD, verdict)
    return got


def test_a_fold_is_sealed_opened_and_burned(ledger):
    assert (ledger.state(FOLD), ledger.head()) == ("unknown", START)
    ledger.seal(FOLD, 59)
    assert ledger.state(FOLD) == "sealed"
    assert ledger.open(FOLD, "plan", "policy", 0.05).delta == 0.05
    assert ledger.state(FOLD) == "open"
    assert ledger.close(FOLD, "NSF") == ledger.head()
    assert ledger.state(FOLD) == "burned"
    assert [entry["event"] for entry in ledger.entries()] == ["seal", "open", "close"]
    assert ledger.verify() == 3


def test_the_intent_is_on_disk_when_open_returns(ledger):
    ledger.seal(FOLD, 59)
    ledger.open(FOLD, "plan", "policy", 0.05)
    intent = read(ledger.path)[-1]
    assert (intent["plan"], intent["policy"], intent["attempt"], intent["delta"]) == (
        "plan",
        "policy",
        1,
        0.05,
    )
    assert intent["at"] == "2026-01-05T10:00:00+00:00"


@pytest.mark.parametrize("verdict", ["CERTIFIED", "NSF", "INVALID"])
def test_single_use_means_one_attempt(ledger, verdict):
    ledger.seal(FOLD, 59)
    attempt(ledger, verdict)
    with pytest.raises(UserError, match=r"is burned.*use a fresh fold"):
        ledger.open(FOLD, "plan", "policy", 0.05)


def test_a_schedule_allows_retries_after_failure_at_a_smaller_delta(ledger):
    ledger.seal(FOLD, 400)
    got = [attempt(ledger, verdict, "geometric") for verdict in ("NSF", "INVALID", "CERTIFIED")]
    assert [(each.number, each.delta) for each in got] == [(1, 0.025), (2, 0.0125), (3, 0.00625)]
    with pytest.raises(UserError, match="is burned"):
        ledger.open(FOLD, "plan", "policy", 0.05, "geometric")


def test_delta_and_schedule_cannot_change_between_attempts(ledger):
    ledger.seal(FOLD, 400)
    attempt(ledger, "NSF", "geometric")
    for delta, schedule in [(0.1, "geometric"), (0.05, "inverse_square"), (0.05, "single_use")]:
        with pytest.raises(UserError, match="keeps both"):
            ledger.open(FOLD, "plan", "policy", delta, schedule)


def test_an_open_fold_stays_closed_to_everyone(ledger):
    ledger.seal(FOLD, 59)
    ledger.open(FOLD, "plan", "policy", 0.05, "geometric")
    with pytest.raises(UserError, match=r"is open.*never closed"):
        ledger.open(FOLD, "plan", "policy", 0.05, "geometric")


def test_burning_is_for_ever(ledger):
    ledger.seal(FOLD, 59)
    ledger.burn(FOLD, "the mean cost was published")
    with pytest.raises(UserError, match="already burned"):
        ledger.seal(FOLD, 59)
    with pytest.raises(UserError, match="is burned"):
        ledger.open(FOLD, "plan", "policy", 0.05)


def test_folds_do_not_touch_each_other(ledger):
    ledger.seal(FOLD, 59)
    ledger.seal(OTHER, 59)
    attempt(ledger, "NSF")
    assert (ledger.state(FOLD), ledger.state(OTHER)) == ("burned", "sealed")
    assert state(ledger.entries()[:3], FOLD) == "open"


def test_nothing_follows_a_burned_fold():
    events = [{"event": event, "fold": FOLD} for event in ("seal", "burn", "seal")]
    assert [state(events[:end], FOLD) for end in range(4)] == ["unknown", "sealed", "burned", "burned"]


def test_order_of_events_is_enforced(ledger):
    with pytest.raises(UserError, match=r"is unknown.*seal it before"):
        ledger.open(FOLD, "plan", "policy", 0.05)
    ledger.seal(FOLD, 59)
    with pytest.raises(UserError, match="already sealed"):
        ledger.seal(FOLD, 59)
    with pytest.raises(UserError, match="is sealed, so there is no attempt to close"):
        ledger.close(FOLD, "CERTIFIED")


def test_every_byte_is_guarded(ledger):
    ledger.seal(FOLD, 59)
    attempt(ledger, "NSF")
    whole = ledger.path.read_bytes()
    for place in range(len(whole)):
        ledger.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError):
            ledger.verify()


def test_another_spelling_of_the_same_content_is_noticed(ledger):
    ledger.seal(FOLD, 59)
    ledger.path.write_text(ledger.path.read_text().replace('"index":0', '"index": 0'))
    with pytest.raises(UserError, match="line 1: was altered"):
        ledger.verify()


def test_an_entry_with_a_hash_of_its_own_breaks_the_chain(ledger):
    ledger.seal(FOLD, 59)
    attempt(ledger, "NSF")
    first, *others = ledger.entries()
    body = {key: value for key, value in first.items() if key != "sha256"} | {"n": 1000}
    forged = [{**body, "sha256": digest(body)}, *others]
    ledger.path.write_text("".join(canonical(entry) + "\n" for entry in forged))
    with pytest.raises(UserError, match="line 2: does not follow"):
        ledger.verify()


def test_removed_moved_and_torn_lines_are_named(ledger):
    ledger.seal(FOLD, 59)
    attempt(ledger, "NSF")
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    for kept, message in [
        ([lines[0], lines[2]], "line 2: does not follow"),
        ([lines[1], lines[0], lines[2]], "line 1: does not follow"),
        ([*lines[:2], lines[2][:40]], "last line is incomplete"),
        ([*lines, b"[]\n"], "line 4: not an entry"),
        ([*lines, b"{}\n"], "line 4: not an entry"),
    ]:
        ledger.path.write_bytes(b"".join(kept))
        with pytest.raises(UserError, match=message):
            ledger.verify()
        with pytest.raises(UserError, match=message):
            ledger.seal(OTHER, 59)


def test_nobody_reads_while_an_entry_is_written(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "ledger.jsonl"

    def clock():
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return "asked under the lock"

    Ledger(path, clock).seal(FOLD, 59)
    assert Ledger(path).entries()[0]["at"] == "asked under the lock"


def _claim(path, name, queue):
    try:
        Ledger(path).open(FOLD, name, "policy", 0.05)
        queue.put(name)
    except UserError:
        queue.put(None)


def test_two_processes_cannot_open_the_same_fold(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path).seal(FOLD, 59)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_claim, args=(path, str(i), queue)) for i in range(6)]
    for worker in workers:
        worker.start()
    answers = [queue.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join()
    assert len([answer for answer in answers if answer is not None]) == 1
    assert Ledger(path).verify() == 2
