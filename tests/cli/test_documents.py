"""Every `openbell ...` line in the documents is one that the command takes."""

import re
import shlex
from pathlib import Path

import pytest

from cli.commands import COMMANDS, doctor
from cli.parser import EXAMPLES, build
from shared.messaging.failed import NOTES

ALL = {*COMMANDS, doctor.__name__}
ROOT = Path(__file__).parents[2]
LINE = re.compile(r"(?:^|[`$|] ?)(?:\.venv/bin/)?openbell ((?:[^`\n|\\]|\\\n)+)", re.MULTILINE)
STANDS_FOR = {
    "$JOB": "detector/01980000-0000-7000-8000-000000000001",
    "$RUN": "detector/01980000-0000-7000-8000-000000000002",
    "$GROUP": "1bc10c97252fc417",
    "$CONSUMER": "detector.chains",
    "$SINCE": "2026-07-01T12:00:00+00:00",
}


def commands(text: str) -> list[list[str]]:
    found: list[list[str]] = []
    for match in LINE.finditer(text):
        words = shlex.split(match[1].replace("\\\n", " "), comments=True)
        words = words[: next((n for n, word in enumerate(words) if word.startswith((">", "<"))), len(words))]
        found.append([STANDS_FOR.get(word, word) for word in words])
    return found


DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
WRITTEN = [words for path in DOCUMENTS for words in commands(path.read_text())]
HELP = [words for line in EXAMPLES.splitlines() for words in commands(line.strip())]


@pytest.mark.parametrize("words", [*WRITTEN, *HELP], ids=" ".join)
def test_a_documented_command_parses(words: list[str]):
    asked = build().parse_args(words)
    assert asked.run in ALL


def test_the_runbooks_are_full_of_commands():
    assert len(WRITTEN) > 20
    assert len(HELP) == 6


def test_every_command_stands_in_a_document():
    told = {build().parse_args(words).run for words in WRITTEN}
    assert ALL - told == set()


def test_the_runbook_names_every_code_that_takes_no_retry():
    page = (ROOT / "docs/runbooks/failed-jobs.md").read_text()
    (told,) = re.findall(r"^(.*) tell of records that nobody can run", page, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", told)) == NOTES
    assert [code for code in NOTES if f"| `{code}` |" not in page] == []
