"""A scorer behind HTTP, asked through a real server on this machine that can be made to misbehave."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from holdfast.config import build
from holdfast.data.schema import Conversation, Image, Message
from holdfast.errors import RunError, UserError
from holdfast.preference.endpoint import EndpointScorer, EndpointSettings

ROWS = [Conversation.ask(f"question {i}", id=f"row-{i}").answer("word " * (i + 1)) for i in range(7)]


def words(conversation):
    """What the well-behaved service says: the words of the last turn, and no second score for odd counts."""
    count = len(conversation[-1]["content"].split())
    return {"words": count, "even": None if count % 2 else 0.5, "unasked": "for"}


class Service(ThreadingHTTPServer):
    """Answers with `words`, or with what `misbehave` returns: a status, headers and a body for the n-th request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen, self.headers, self.lock = [], [], threading.Lock()
        self.misbehave = lambda number: None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/score?key=hidden"

    def handle_error(self, request, client_address):
        """Nothing: whoever has given up on a slow answer is gone when it comes."""

    def sizes(self):
        return [len(conversations) for conversations in self.seen]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(body["conversations"])
            self.server.headers.append(dict(self.headers))
            number = len(self.server.seen)
        good = json.dumps({"scores": [words(one) for one in body["conversations"]]})
        status, headers, text = self.server.misbehave(number) or (200, {}, good)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *given):
        pass


@pytest.fixture
def service():
    server = Service()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def scorer(service, **settings):
    defaults = {"url": service.url, "names": ("words", "even"), "pause": 0.0}
    return EndpointScorer(EndpointSettings(**{**defaults, **settings}))


def test_scores_come_in_the_order_of_the_rows_whatever_the_batches(service):
    service.misbehave = lambda number: time.sleep(0.05) if number == 1 else None
    table = scorer(service, batch=2, concurrency=3).score(ROWS)
    assert table[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert table.dtype == torch.float32
    assert sorted(service.sizes()) == [1, 2, 2, 2]


def test_null_becomes_nan_and_nothing_else_does(service):
    table = scorer(service).score(ROWS[:3])
    assert table[:, 1].isnan().tolist() == [True, False, True]
    assert table[1, 1] == 0.5


def test_all_turns_are_sent_and_equal_conversations_once(service):
    talk = Conversation(
        messages=(Message.of("system", "be kind"), Message.of("user", "hello"), Message.of("assistant", "good day"))
    )
    table = scorer(service, batch=2).score([talk, ROWS[3], talk, ROWS[0], ROWS[3].model_copy(update={"id": "again"})])
    assert table[:, 0].tolist() == [2.0, 4.0, 2.0, 1.0, 4.0]
    assert sorted(service.sizes()) == [1, 2]
    sent = next(one for part in service.seen for one in part if len(one) == 3)
    assert sent == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "good day"},
    ]


def test_no_conversations_ask_nothing(service):
    assert scorer(service).score([]).shape == (0, 2)
    assert service.seen == []


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_service_that_recovers_is_asked_again(service, status):
    service.misbehave = lambda number: (status, {}, "busy") if number < 3 else None
    assert scorer(service).score(ROWS[:2])[:, 0].tolist() == [1.0, 2.0]
    assert service.sizes() == [2, 2, 2]


def test_pauses_double_and_follow_what_the_service_asks_for(service, monkeypatch):
    pauses = []
    monkeypatch.setattr("holdfast.preference.endpoint.time.sleep", pauses.append)
    asked = {2: {"Retry-After": "7"}, 3: {"Retry-After": "9999"}, 4: {"Retry-After": "tomorrow"}}
    service.misbehave = lambda number: (503, asked.get(number, {}), "") if number < 5 else None
    scorer(service, pause=0.5, retries=4).score(ROWS[:1])
    assert pauses == [0.5, 7.0, 60.0, 4.0]
    service.misbehave = lambda number: (503, {}, "")
    with pytest.raises(RunError, match="failed 3 times"):
        scorer(service, pause=0.5, retries=2).score(ROWS[:1])
    assert pauses[4:] == [0.5, 1.0], "nobody waits after the last attempt"


def test_a_service_that_stays_down_ends_the_run_with_its_last_words(service):
    service.misbehave = lambda number: (500, {}, f"trouble {number}")
    message = r"127\.0\.0\.1:\d+/score failed 3 times for rows row-0, row-1, at last with status 500, 'trouble 3'; see"
    with pytest.raises(RunError, match=message):
        scorer(service, retries=2).score(ROWS[:2])
    assert len(service.seen) == 3


def test_what_the_service_refuses_is_not_asked_again(service):
    service.misbehave = lambda number: (401, {}, "who are you?")
    with pytest.raises(RunError, match=r"/score refused rows row-0: status 401, 'who are you\?'"):
        scorer(service).score(ROWS[:1])
    assert len(service.seen) == 1


def test_a_slow_service_is_given_up_and_asked_again(service):
    service.misbehave = lambda number: time.sleep(0.6) if number == 1 else None
    assert scorer(service, timeout=0.2).score(ROWS[:1])[0, 0] == 1.0
    service.misbehave = lambda number: time.sleep(0.6)
    with pytest.raises(RunError, match=r"failed 1 times for rows row-0, at last with TimeoutError: 'timed out'"):
        scorer(service, timeout=0.2, retries=0).score(ROWS[:1])


def test_nobody_listening_is_said(service):
    quiet = scorer(service, url="http://127.0.0.1:9/", retries=1)
    with pytest.raises(RunError, match=r"http://127\.0\.0\.1:9/ failed 2 times .* at last with URLError: .*efused"):
        quiet.score(ROWS[:1])


@pytest.mark.parametrize(
    "answer, message",
    [
        (
            "<html>",
            r"answered '<html>' for rows row-0, row-1; needed is \{\"scores\": .* with 2 objects of words, even",
        ),
        ("[1, 2]", r"answered '\[1, 2\]' for"),
        ('{"score": []}', r"answered '\{\"score\": \[\]\}' for"),
        ('{"scores": [{}]}', r"answered scores that are 1 objects for rows row-0, row-1; needed"),
        ('{"scores": {"a": 1}}', r"answered scores that are a dict for"),
        (
            '{"scores": [{"words": 1, "even": 2}, {"words": 1}]}',
            r"for one of rows .*, and even must be a finite number",
        ),
        ('{"scores": [3, 4]}', r"answered '3' for one of .* words, even must be"),
        (
            '{"scores": [{"words": true, "even": 1}, {"words": 1, "even": 1}]}',
            r"and words must be a finite number or null",
        ),
        ('{"scores": [{"words": "1", "even": 1}, {"words": 1, "even": 1}]}', r"and words must be"),
        ('{"scores": [{"words": NaN, "even": 1e99}, {"words": 1, "even": 1}]}', r"and words, even must be"),
    ],
)
def test_answers_of_another_shape_say_what_came_and_what_is_needed(service, answer, message):
    service.misbehave = lambda number: (200, {}, answer)
    with pytest.raises(RunError, match=message):
        scorer(service).score(ROWS[:2])
    assert len(service.seen) == 1


def test_secrets_come_from_the_environment_and_are_never_shown(service, monkeypatch):
    monkeypatch.setenv("SCORER_TOKEN", " sesame-123\n")
    secretive = scorer(service, headers_from_env={"X-Token": "SCORER_TOKEN"})
    secretive.score(ROWS[:1])
    assert service.headers[0]["X-Token"] == "sesame-123"
    service.misbehave = lambda number: (403, {}, "sesame-123 is not the word")
    with pytest.raises(RunError) as caught:
        secretive.score(ROWS[:1])
    assert "'*** is not the word'" in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert "hidden" not in str(caught.value), "the query of the address may hold a key"
    monkeypatch.setenv("SCORER_TOKEN", "two\nlines")
    with pytest.raises(UserError, match=r"variable SCORER_TOKEN, which holds what no header can hold"):
        scorer(service, headers_from_env={"X-Token": "SCORER_TOKEN"})
    monkeypatch.delenv("SCORER_TOKEN")
    with pytest.raises(
        UserError, match=r"header X-Token needs the environment variable SCORER_TOKEN, which is not set"
    ):
        scorer(service, headers_from_env={"X-Token": "SCORER_TOKEN"})


def test_secrets_are_not_carried_to_where_the_service_points(service, monkeypatch):
    monkeypatch.setenv("SCORER_TOKEN", "sesame-123")
    service.misbehave = lambda number: (302, {"Location": service.url}, "")
    with pytest.raises(RunError, match="refused rows row-0: status 302"):
        scorer(service, headers_from_env={"X-Token": "SCORER_TOKEN"}).score(ROWS[:1])
    assert len(service.seen) == 1


def test_images_are_refused(service):
    seen = Conversation.ask("what is this ?", (Image(path="a.png"),), id="seen").answer("a cat")
    with pytest.raises(UserError, match=r"/score scores text, and 1 conversations hold images \(rows seen\); score"):
        scorer(service).score([ROWS[0], seen])
    assert service.seen == []


def test_addresses_that_cannot_be_asked_are_refused():
    for url in ("scores.example/score", "ftp://scores.example", "http://"):
        with pytest.raises(UserError, match="url: write http://host/path or https://host/path"):
            build(EndpointSettings, {"url": url, "names": ["a"]})
    with pytest.raises(UserError, match="url: it holds a name or password; send them in a header"):
        build(EndpointSettings, {"url": "https://me:word@scores.example", "names": ["a"]})
