"""The commands. Each takes the gateway and what was asked, prints, and returns the exit code."""

import argparse
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from cli import tables
from cli.gateway import INCOMPLETE, OK, REFUSED, USAGE, Failure, Gateway

Asked = argparse.Namespace
Answer = dict[str, Any]

FILTER: Final = ("consumer", "fingerprint", "code", "since", "until")
MANY: Final = (*FILTER, "status", "cap", "rate", "dry_run")
"""What may be said only when no job is named."""
SUMMARY: Final = (
    "consumer",
    "job_type",
    "status",
    "error_code",
    "error_message",
    "attempts",
    "due_at",
    "topic",
    "partition",
    "record_offset",
    "key",
    "event_id",
    "fingerprint",
    "failed_at",
    "resolved_by",
    "resolution",
)
HEADERS: Final = (("name", "name"), ("value", "value"))
KEYS: Final[tuple[tables.Column, ...]] = (("key", "key"), ("sealed", "used"))
SEALED: Final[Mapping[str, tuple[str, str]]] = {
    "broker": ("/broker/credentials/rotate", "the credentials of account"),
    "alerts": ("/api/alerts/targets/rotate", "the target"),
}
"""By service: where what it seals is wrapped anew, and what one of it is called."""
HISTORY: Final = (("at", "at"), ("code", "code"), ("message", "message"))
ENDED: Final = frozenset({"done", "failed", "cancelled"})
POLL_S: Final = 0.5


def failed_list(gateway: Gateway, asked: Asked) -> int:
    """List failed jobs."""
    query = {name: getattr(asked, name) for name in FILTER} | {"status": asked.status, "limit": asked.limit}
    return _listed(asked, gateway.get("/ops/failed-jobs", query), "failed_jobs", tables.JOBS)


def failed_groups(gateway: Gateway, asked: Asked) -> int:
    """Group them."""
    return _listed(asked, gateway.get("/ops/failed-jobs/groups"), "groups", tables.GROUPS)


def failed_show(gateway: Gateway, asked: Asked) -> int:
    """Show one."""
    job = gateway.get(f"/ops/failed-jobs/{asked.id}")
    if asked.body:
        _print_json(job["value"])
    elif asked.json:
        _print_json(job)
    else:
        _show_job(job)
        tables.say("\nheaders")
        tables.show(({"name": name, "value": value} for name, value in job["headers"]), HEADERS)
        tables.say("\nhistory")
        tables.show(job["errors"], HISTORY)
        tables.say("\nbody")
        tables.fields(job, ("value",))
    return OK


def failed_retry(gateway: Gateway, asked: Asked) -> int:
    """Retry one or many."""
    if asked.id:
        _only_one(asked)
        return _one(asked, gateway.post(f"/ops/failed-jobs/{asked.id}/retry"))
    return _many(gateway, asked, "retry", {})


def failed_discard(gateway: Gateway, asked: Asked) -> int:
    """Discard one or many."""
    reason = {"reason": asked.reason}
    if asked.id:
        _only_one(asked)
        return _one(asked, gateway.post(f"/ops/failed-jobs/{asked.id}/discard", reason))
    return _many(gateway, asked, "discard", reason)


def failed_edit(gateway: Gateway, asked: Asked) -> int:
    """Edit one."""
    body: Answer = {"type": asked.type, "time": asked.time}
    if asked.value is not None:
        read = sys.stdin.buffer.read() if asked.value == "-" else _file(asked.value)
        try:
            value = json.loads(read)
        except ValueError:
            value = None
        body |= {"value": value} if isinstance(value, dict) else {"value_base64": base64.b64encode(read).decode()}
    return _one(asked, gateway.post(f"/ops/failed-jobs/{asked.id}/edit", body))


def failed_redirect(gateway: Gateway, asked: Asked) -> int:
    """Redirect one."""
    return _one(asked, gateway.post(f"/ops/failed-jobs/{asked.id}/redirect", {"topic": asked.to}))


def replay(gateway: Gateway, asked: Asked) -> int:
    """Start a replay, and wait for its end."""
    names = ("consumer", "topic", "partition", "from_offset", "since", "until", "again", "rate", "dry_run")
    if asked.again and not asked.dry_run:
        _confirm(asked, f"run all of it in {asked.consumer} once more, as {asked.again!r}")
    run = gateway.post("/ops/replays", {name: getattr(asked, name) for name in names})
    return _follow(gateway, asked, [run])


def runs_list(gateway: Gateway, asked: Asked) -> int:
    """List runs."""
    return _listed(asked, gateway.get("/ops/runs", {"limit": asked.limit}), "runs", tables.RUNS)


def runs_show(gateway: Gateway, asked: Asked) -> int:
    """Show a run."""
    return _show_runs(asked, [gateway.get(f"/ops/runs/{asked.id}")])


def runs_wait(gateway: Gateway, asked: Asked) -> int:
    """Wait for a run's end."""
    asked.no_wait = False
    return _follow(gateway, asked, [gateway.get(f"/ops/runs/{asked.id}")])


def runs_cancel(gateway: Gateway, asked: Asked) -> int:
    """Cancel a run."""
    gateway.post(f"/ops/runs/{asked.id}/cancel")
    return runs_show(gateway, asked)


def topics(gateway: Gateway, asked: Asked) -> int:
    """List topics."""
    return _listed(asked, gateway.get("/ops/topics"), "topics", tables.TOPICS)


def lag(gateway: Gateway, asked: Asked) -> int:
    """List lag."""
    return _listed(asked, gateway.get("/ops/lag"), "lag", tables.LAG)


def rotate_credentials(gateway: Gateway, asked: Asked) -> int:
    """Wrap all that lies under old keys anew, of every service that seals; what was broken off goes on."""
    rotations = {service: _rotated(gateway, path) for service, (path, _) in SEALED.items()}
    if asked.json:
        _print_json(rotations)
    for service, done in rotations.items():
        what = SEALED[service][1]
        if not asked.json:
            tables.say(f"{service}: {done['rewrapped']} wrapped anew")
            tables.show(({"key": key, "used": used} for key, used in done["keys"].items()), KEYS)
        if done.get("readable"):
            _note(f"{service}: {done['readable']} lie readable: sealed within a minute, or a day after an upgrade")
        for one in done["unreadable"]:
            _note(f"does not open: {what} {one}")
    return REFUSED if any(done["unreadable"] for done in rotations.values()) else OK


def _rotated(gateway: Gateway, path: str) -> Answer:
    """Return the last answer of a rotation, with the sums of all."""
    answers: list[Answer] = [gateway.post(path, {})]
    while (after := answers[-1]["next"]) is not None:
        answers.append(gateway.post(path, {"after": after}))
    unreadable = [one for answer in answers for one in answer["unreadable"]]
    return answers[-1] | {"rewrapped": sum(answer["rewrapped"] for answer in answers), "unreadable": unreadable}


def doctor(place: Mapping[str, str], asked: Asked) -> int:
    """Look at what services need, in a process with their settings; beside `make run`, with those that it wrote."""
    settings = {"OPENBELL_DATABASE_URL": "database_url", "OPENBELL_KAFKA_BOOTSTRAP": "kafka_bootstrap"}
    known = {name: place[key] for name, key in settings.items() if key in place}
    url = asked.url or os.environ.get("OPENBELL_URL") or place.get("url")
    options = (["--json"] if asked.json else []) + (["--gateway", url] if url else [])
    command = [sys.executable, "-P", "-m", "shared.doctor", *options]
    return subprocess.run(command, check=False, env={**known, **os.environ}).returncode  # noqa: S603 - our own words


COMMANDS: Final[Mapping[str, Callable[[Gateway, Asked], int]]] = {
    command.__name__: command
    for command in (
        failed_list,
        failed_groups,
        failed_show,
        failed_retry,
        failed_discard,
        failed_edit,
        failed_redirect,
        replay,
        runs_list,
        runs_show,
        runs_wait,
        runs_cancel,
        topics,
        lag,
        rotate_credentials,
    )
}


def _only_one(asked: Asked) -> None:
    """Refuse what would be ignored beside a named job; a dry run of one must not act."""
    given = [name for name in MANY if (value := getattr(asked, name)) is not None and value is not False]
    if given:
        said = ", ".join("--" + name.replace("_", "-") for name in given)
        raise Failure(USAGE, f"{said} is for many: leave it out, or name no job; nothing was done")


def _many(gateway: Gateway, asked: Asked, verb: str, more: Answer) -> int:
    """Count first; ask; then act and wait for the end."""
    order: Answer = (
        {name: getattr(asked, name) for name in (*FILTER, "cap", "rate")} | {"statuses": asked.status} | more
    )
    if not any(order[name] for name in FILTER):
        raise Failure(USAGE, "which jobs? Name one as SERVICE/ID, or say --fingerprint, --consumer, --code or --since")
    path = f"/ops/failed-jobs/{verb}"
    seen = gateway.post(path, {**order, "dry_run": True})
    count = sum(one["selected"] for one in seen["services"])
    if asked.dry_run:
        if asked.json:
            _print_json(seen)
        else:
            _preview(seen, verb)
        return _complete(seen)
    if not asked.yes:
        _preview(seen, verb, to=sys.stderr)
    if not count:
        _note("nothing to do")
        return _complete(seen)
    _confirm(asked, f"{verb} {count} jobs")
    done = gateway.post(path, order)
    runs = [one["run"] for one in done["services"] if one["run"]]
    return max(_follow(gateway, asked, runs), _complete(done))


def _preview(seen: Answer, verb: str, to: Any = None) -> None:
    for one in seen["services"]:
        for group in one["groups"]:
            line = f"{group['rows']} {group['status']} of {group['consumer']}, {group['error_code']}"
            print(line, file=to or sys.stdout)
        if one["matched"]:
            pace = f", over {tables.duration(one['takes_s'])}" if one["takes_s"] else ""
            print(f"{one['service']}: would {verb} {one['selected']} of {one['matched']}{pace}", file=to or sys.stdout)
    if to is None:
        tables.show([row for one in seen["services"] for row in one["sample"]], tables.JOBS)


def _confirm(asked: Asked, what: str) -> None:
    if asked.yes:
        return
    if not sys.stdin.isatty():
        raise Failure(USAGE, f"nobody is here to be asked whether to {what}: say --yes")
    sys.stderr.write(f"{what[0].upper()}{what[1:]}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Failure(USAGE, "not confirmed; nothing was done")


def _follow(gateway: Gateway, asked: Asked, runs: list[Answer]) -> int:
    """Wait until the runs have ended, unless told not to; print them."""
    while not asked.no_wait and any(run["status"] not in ENDED for run in runs):
        time.sleep(POLL_S)
        runs = [gateway.get(f"/ops/runs/{run['service']}/{run['id']}") for run in runs]
    return _show_runs(asked, runs)


def _show_runs(asked: Asked, runs: list[Answer]) -> int:
    if asked.json:
        _print_json({"runs": runs})
    else:
        tables.show(runs, tables.RUNS)
    return REFUSED if any(run["status"] in {"failed", "cancelled"} for run in runs) else OK


def _one(asked: Asked, job: Answer) -> int:
    if asked.json:
        _print_json(job)
    else:
        _show_job(job)
    return OK


def _show_job(job: Answer) -> None:
    tables.say(f"{job['service']}/{job['id']}")
    tables.fields(job, [name for name in SUMMARY if job[name] is not None])


def _listed(asked: Asked, answer: Answer, name: str, columns: tuple[tables.Column, ...]) -> int:
    if asked.json:
        _print_json(answer)
    elif answer[name]:
        tables.show(answer[name], columns)
    else:
        _note("none")
    return _complete(answer)


def _complete(answer: Answer) -> int:
    """Say which services did not answer."""
    for service, why in answer["unavailable"].items():
        _note(f"unavailable: {service} ({why})")
    return INCOMPLETE if answer["unavailable"] else OK


def _file(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise Failure(USAGE, f"cannot read {name}: {error.strerror}") from error


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _note(line: str) -> None:
    print(line, file=sys.stderr)
