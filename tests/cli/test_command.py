"""The command against a gateway that answers as told: what is asked, printed and returned."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.main import main

RUN = {
    "service": "api",
    "id": "01980000-0000-7000-8000-000000000001",
    "kind": "retry",
    "consumer": "api.audit",
    "request": {},
    "counts": {"done": 2, "skipped": 0},
    "rows": 2,
    "status": "done",
    "error": None,
    "created_at": "2026-07-01T00:00:00Z",
}
SEEN = {
    "service": "api",
    "dry_run": True,
    "matched": 2,
    "selected": 2,
    "takes_s": 0.0,
    "groups": [{"rows": 2, "status": "dead", "consumer": "api.audit", "error_code": "X"}],
    "sample": [],
    "run": None,
}
LAG = {
    "service": "api",
    "consumer": "api.audit",
    "topic": "api.audit",
    "partition": 0,
    "settled_offset": 3,
    "settled_at": None,
    "first_offset": 0,
    "end_offset": 10,
    "lag_records": 7,
    "lag_s": 7200.0,
    "problem": None,
}
JOB = f"api/{RUN['id']}"


class Server:
    """Answers by path; remembers what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[httpx.Request], httpx.Response]] = {}
        self.asked: list[httpx.Request] = []

    def say(self, path: str, body: Any, status: int = 200) -> None:
        self.answers[path] = lambda _: httpx.Response(status, json=body)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return self.answers[request.url.path](request)

    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.asked if request.method == "POST" and request.content]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv("OPENBELL_URL", "http://gateway")
    monkeypatch.setenv("OPENBELL_API_KEY", "ob_key")
    return lambda *words: main(words, httpx.MockTransport(server))


def test_a_table_for_people_and_the_answer_itself_for_scripts(run, server: Server, capsys):
    server.say("/ops/lag", {"lag": [LAG], "unavailable": {}})
    assert run("lag") == 0
    table = capsys.readouterr().out
    assert "api.audit" in table
    assert "2 h" in table
    assert run("lag", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"lag": [LAG], "unavailable": {}}
    assert server.asked[0].headers["authorization"] == "Bearer ob_key"


def test_an_incomplete_answer_is_printed_and_has_a_code_of_its_own(run, server: Server, capsys):
    server.say("/ops/lag", {"lag": [LAG], "unavailable": {"data": "UPSTREAM_UNAVAILABLE"}})
    assert run("lag") == 4
    said = capsys.readouterr()
    assert "api.audit" in said.out
    assert said.err == "unavailable: data (UPSTREAM_UNAVAILABLE)\n"


def test_a_refusal_says_why_and_in_which_request(run, server: Server, capsys):
    error = {"code": "FORBIDDEN", "message": "this is for administrators", "details": {}, "request_id": "r-17"}
    server.say("/ops/topics", {"error": error}, 403)
    assert run("topics") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "FORBIDDEN: this is for administrators" in said.err
    assert "r-17" in said.err


def test_a_gateway_that_is_not_there_is_told_from_one_that_refuses(run, server: Server, capsys):
    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    server.answers["/ops/lag"] = broken
    assert run("lag") == 3
    assert "http://gateway does not answer" in capsys.readouterr().err
    server.answers["/ops/lag"] = lambda _: httpx.Response(200, text="<html>")
    assert run("lag") == 3


def test_an_action_whose_answer_was_lost_is_sent_again_under_the_same_key(run, server: Server):
    calls = 0

    def shaky(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise httpx.ReadError("reset", request=request)
        return httpx.Response(202, json=RUN)

    server.answers["/ops/replays"] = shaky
    assert run("replay", "api.audit") == 0
    first, second = (request.headers["idempotency-key"] for request in server.asked)
    assert first == second


def test_a_bulk_action_is_counted_first_and_needs_a_yes(run, server: Server, capsys):
    server.say("/ops/failed-jobs/retry", {"services": [SEEN], "unavailable": {}}, 202)
    assert run("failed", "retry", "--code", "X") == 2
    assert "--yes" in capsys.readouterr().err
    assert [body["dry_run"] for body in server.bodies()] == [True]


def test_a_confirmed_bulk_action_waits_for_its_end(run, server: Server, capsys):
    def answer(request: httpx.Request) -> httpx.Response:
        dry = json.loads(request.content).get("dry_run")
        one = SEEN if dry else SEEN | {"run": RUN | {"status": "queued"}}
        return httpx.Response(202, json={"services": [one], "unavailable": {}})

    server.answers["/ops/failed-jobs/retry"] = answer
    server.say(f"/ops/runs/{JOB}", RUN)
    assert run("failed", "retry", "--code", "X", "--rate", "5", "--yes") == 0
    assert "done 2" in capsys.readouterr().out
    assert server.bodies()[1] == {"code": "X", "rate": 5.0}
    server.say(f"/ops/runs/{JOB}", RUN | {"status": "failed", "error": "why"})
    assert run("failed", "retry", "--code", "X", "--yes") == 1


def test_a_dry_run_asks_nobody_and_begins_nothing(run, server: Server, capsys):
    server.say("/ops/failed-jobs/discard", {"services": [SEEN], "unavailable": {}}, 202)
    asked = ("--consumer", "api.audit", "--rate", "5", "--reason", "old", "--dry-run")
    assert run("failed", "discard", *asked) == 0
    assert "would discard 2 of 2" in capsys.readouterr().out
    assert [(body["dry_run"], body["rate"]) for body in server.bodies()] == [(True, 5.0)]


@pytest.mark.parametrize("verb", ["retry", "discard"])
@pytest.mark.parametrize(
    "option",
    [
        ("--dry-run",),
        ("--rate", "0"),
        ("--cap", "5"),
        ("--status", "dead"),
        ("--consumer", "api.audit"),
        ("--fingerprint", "f"),
        ("--code", "X"),
        ("--since", "1h"),
        ("--until", "1h"),
    ],
)
def test_an_option_for_many_beside_a_named_job_is_refused_and_nothing_is_sent(
    run, server: Server, capsys, verb: str, option: tuple[str, ...]
):
    reason = ("--reason", "old") if verb == "discard" else ()
    assert run("failed", verb, JOB, *reason, *option) == 2
    assert f"{option[0]} is for many" in capsys.readouterr().err
    assert server.asked == []


def test_an_edit_sends_json_as_json_and_other_bytes_as_base64(run, server: Server, tmp_path: Path, capsys):
    server.say(f"/ops/failed-jobs/{JOB}/edit", {"error": {"code": "X", "message": "no", "request_id": "r"}}, 422)
    (tmp_path / "a").write_bytes(b'{"n": 1}')
    (tmp_path / "b").write_bytes(b"ARROW\xff")
    for name in "ab":
        assert run("failed", "edit", JOB, "--value", str(tmp_path / name)) == 1
    assert server.bodies() == [{"value": {"n": 1}}, {"value_base64": "QVJST1f/"}]
    assert run("failed", "edit", JOB, "--value", str(tmp_path / "absent")) == 2


def test_what_a_failed_job_says_cannot_command_the_terminal(run, server: Server, capsys):
    group = {
        "fingerprint": "f",
        "rows": 1,
        "consumer": "c",
        "job_type": "\x1b[2J[red]x",
        "error_code": "X",
        "statuses": ["dead"],
        "example": "e",
        "last_at": "2026-07-01T00:00:00Z",
    }
    server.say("/ops/failed-jobs/groups", {"groups": [group], "unavailable": {}})
    assert run("failed", "groups") == 0
    assert "\\x1b[2J[red]x" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("failed",),
        ("failed", "retry"),
        ("failed", "show", "no-id"),
        ("failed", "discard", JOB),
        ("replay", "c", "--since", "2026-01-01"),
        ("replay", "c", "--missing", "--again", "x"),
    ],
)
def test_a_wrong_command_is_a_usage_error(run, words: tuple[str, ...]):
    try:
        code = run(*words)
    except SystemExit as leaving:  # argparse's own way out
        code = leaving.code
    assert code == 2


def test_beside_make_run_no_option_is_needed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    for name in ("OPENBELL_URL", "OPENBELL_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".openbell").mkdir()
    (tmp_path / ".openbell/demo.json").write_text('{"url": "http://here", "admin_key": "ob_demo"}')
    monkeypatch.chdir(tmp_path)
    server.say("/ops/lag", {"lag": [], "unavailable": {}})
    assert main(["lag"], httpx.MockTransport(server)) == 0
    assert (server.asked[0].url.host, server.asked[0].headers["authorization"]) == ("here", "Bearer ob_demo")
    assert main(["--url", "http://there", "--key", "k", "lag"], httpx.MockTransport(server)) == 0
    assert server.asked[1].url.host == "there"


def test_credentials_are_rotated_until_the_end_and_the_keys_in_use_are_shown(
    server: Server, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    path, last = "/broker/credentials/rotate", "01980000-0000-7000-8000-000000000009"
    answers = iter(
        [
            {"rewrapped": 10_000, "unreadable": [], "next": last, "keys": {"new": 10_000, "old": 3}},
            {"rewrapped": 3, "unreadable": [], "next": None, "keys": {"new": 10_003}},
        ]
    )
    server.answers[path] = lambda _: httpx.Response(200, json=next(answers))
    targets = {"rewrapped": 7, "unreadable": [], "next": None, "keys": {"second": 7}, "readable": 2}
    server.say("/api/alerts/targets/rotate", targets)
    assert run("rotate-credentials") == 0
    assert server.bodies() == [{}, {"after": last}, {}]
    shown = capsys.readouterr()
    assert "broker: 10003 wrapped anew" in shown.out
    assert "alerts: 7 wrapped anew" in shown.out
    assert "old" not in shown.out
    assert "alerts: 2 lie readable" in shown.err


def test_credentials_that_do_not_open_are_named_and_the_command_fails(
    server: Server, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    answer = {"rewrapped": 1, "unreadable": ["an-account"], "next": None, "keys": {"new": 1, "gone": 1}}
    server.say("/broker/credentials/rotate", answer)
    server.say("/api/alerts/targets/rotate", answer | {"unreadable": ["a-user/webhook/1"], "readable": 0})
    assert run("rotate-credentials", "--json") == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["broker"] == answer
    assert "does not open: the credentials of account an-account" in shown.err
    assert "does not open: the target a-user/webhook/1" in shown.err
