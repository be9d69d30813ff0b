"""The command line: what may be asked, in which words."""

import argparse
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

DESCRIPTION: Final = """\
Look after a running Openbell: failed jobs, replays, topics and lag. Everything goes through the gateway's /ops API with
an administrator's key and is audited, but for `doctor`, which looks with the settings of a service. Beside a `make run`
it needs no options; elsewhere set OPENBELL_URL and OPENBELL_API_KEY.
"""
EXAMPLES: Final = """\
examples:
  openbell failed groups
  openbell failed retry --fingerprint 1bc10c97252fc417 --rate 50 --dry-run
  openbell failed show detector/0198c5d2-8f3e-7cc1-9a40-5f1f0c1d2e3f
  openbell replay detector.chains --since 2h --dry-run
  openbell lag
  openbell doctor

exit codes:
  0  done
  1  the server said no, or a run did not end well
  2  the command is wrong, or was not confirmed
  3  the gateway does not answer
  4  done, but a service did not answer: see "unavailable"
"""
STATUSES: Final = ("waiting", "held", "dead", "resolved", "discarded")
UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def build() -> argparse.ArgumentParser:
    """Return the parser. What it parses has `run`, the name of a function in cli.commands."""
    parser = argparse.ArgumentParser(
        prog="openbell", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="the gateway (default: OPENBELL_URL, else the one of `make run`)")
    parser.add_argument("--key", help="an administrator's key; OPENBELL_API_KEY keeps it out of the process list")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _failed(commands.add_parser("failed", help="failed jobs: list, groups, show, retry, edit, redirect, discard"))
    _replay(commands)
    _runs(commands.add_parser("runs", help="bulk actions and replays: list, show, wait, cancel"))
    for name, what in (
        ("topics", "all topics: owner, key, shape, what they hold"),
        ("lag", "how far each consumer is behind, in records and seconds"),
    ):
        _command(commands, name, what)
    _command(commands, "doctor", "look at what services need, from here, and say how to mend what is wrong")
    _command(
        commands,
        "rotate-credentials",
        "wrap credentials and targets of channels that lie under old keys anew, under the first keys of the settings",
        run="rotate_credentials",
    )
    return parser


def _command(commands: Any, name: str, what: str, *, run: str | None = None) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    parser.set_defaults(run=run or name)
    parser.add_argument("--json", action="store_true", help="print the API's answer instead of a table")
    return parser


def _failed(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="ACTION")
    listed = _command(commands, "list", "list failed jobs, latest first; open ones by default", run="failed_list")
    listed.add_argument("--status", action="append", choices=STATUSES)
    listed.add_argument("--limit", type=int, default=50)
    _filter(listed)

    _command(commands, "groups", "group open failed jobs by what went wrong; begin here", run="failed_groups")

    show = _command(commands, "show", "show one with headers, body and history", run="failed_show")
    _job(show)
    show.add_argument("--body", action="store_true", help="print the body alone, to be edited")

    retry = _command(commands, "retry", "run one again, or many: a group, or what a filter finds", run="failed_retry")
    _many(retry)

    edit = _command(commands, "edit", "put a mended event in a failed job's place", run="failed_edit")
    _job(edit)
    edit.add_argument("--value", metavar="FILE", help="the new body, JSON; - reads standard input")
    edit.add_argument("--type", help="the new event type")
    edit.add_argument("--time", type=moment, help="the new event time")

    redirect = _command(commands, "redirect", "publish a failed job's record to another topic", run="failed_redirect")
    _job(redirect)
    redirect.add_argument("--to", required=True, metavar="TOPIC", help="of its service, or a consumer's <name>.dlq")

    discard = _command(commands, "discard", "give one up for good, or many", run="failed_discard")
    _many(discard)
    discard.add_argument("--reason", required=True)


def _replay(commands: Any) -> None:
    what = "read a topic's range again into one consumer; only what it never dealt with runs"
    replay = _command(commands, "replay", what)
    replay.add_argument("consumer", help="for example detector.chains")
    replay.add_argument("--topic", help="the consumer's only topic by default")
    replay.add_argument("--partition", type=int)
    replay.add_argument("--from-offset", type=int)
    replay.add_argument("--since", type=moment, metavar="TIME", help="a time with its zone, or an age such as 90m")
    replay.add_argument("--until", type=moment, metavar="TIME")
    which = replay.add_mutually_exclusive_group()
    which.add_argument("--missing", action="store_true", help="only what was never dealt with (the default)")
    which.add_argument("--again", metavar="RUN", help="run all of it once more, under this name")
    replay.add_argument("--rate", type=float, help="events a second, at most")
    replay.add_argument("--dry-run", action="store_true", help="read and count, change nothing")
    _background(replay)


def _runs(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="ACTION")
    listed = _command(commands, "list", "list bulk actions and replays, newest first", run="runs_list")
    listed.add_argument("--limit", type=int, default=50)
    for name, what in (
        ("show", "show how far one is"),
        ("wait", "wait until one has ended"),
        ("cancel", "stop one; what it did stays"),
    ):
        _job(_command(commands, name, what, run=f"runs_{name}"), "the run, as lists show it")


def _filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--consumer", help="for example detector.chains")
    parser.add_argument("--fingerprint", metavar="GROUP", help="what `failed groups` shows")
    parser.add_argument("--code", help="the error's code, for example DEADLINE")
    parser.add_argument("--since", type=moment, metavar="TIME", help="failed at or after: a time, or an age such as 2h")
    parser.add_argument("--until", type=moment, metavar="TIME", help="failed before")


def _many(parser: argparse.ArgumentParser) -> None:
    _job(parser, "one job; without it, all that the filter finds", nargs="?")
    _filter(parser)
    parser.add_argument(
        "--status", action="append", choices=("waiting", "held", "dead"), help="dead and held by default (many)"
    )
    parser.add_argument("--cap", type=int, help="how many rows at most, the oldest (many; 10000 by default)")
    parser.add_argument("--rate", type=float, help="rows a second, at most (many)")
    parser.add_argument("--dry-run", action="store_true", help="count and show a sample, change nothing (many)")
    _background(parser)


def _background(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the end of the run")


def _job(parser: argparse.ArgumentParser, what: str = "the job, as lists show it", **options: Any) -> None:
    parser.add_argument("id", type=address, metavar="SERVICE/ID", help=what, **options)


def address(word: str) -> str:
    """Return `service/id` as it is; raises ValueError for anything else."""
    service, _, number = word.partition("/")
    if not re.fullmatch(r"[a-z]+", service):
        raise ValueError("not SERVICE/ID")
    return f"{service}/{UUID(number)}"


def moment(word: str) -> str:
    """Return an ISO time: `90m`, `2h`, `7d` are ages, anything else is a time with its zone. Raises ValueError."""
    if match := re.fullmatch(r"(\d+)([smhd])", word):
        return (datetime.now(UTC) - timedelta(seconds=int(match[1]) * UNITS_S[match[2]])).isoformat()
    found = datetime.fromisoformat(word)
    if found.tzinfo is None:
        raise ValueError(f"{word} has no time zone")
    return found.isoformat()
