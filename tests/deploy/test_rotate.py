"""Secrets change step by step as docs/secrets.md says, and at each step what runs accepts what was written before."""

import base64
import hashlib
import hmac
import io
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Final
from uuid import UUID

import asyncpg
import pytest

from deploy.docker import rotate, secrets
from deploy.docker.rotate import Refused, readers, what_then
from shared.clock import utc_now
from shared.envelope import Envelope, Keys
from shared.identity import Identity, Signer, Verifier
from shared.migrate import prepare
from shared.schema import SERVICES

DOCS: Final = Path(__file__).parents[2] / "docs"
PAGES: Final = (DOCS / "secrets.md", DOCS / "runbooks" / "credentials.md")
WORDS: Final = re.compile(r"python -m deploy\.docker\.rotate ((?:add|swap|drop|renew)[^`\n]*)")
INLINE: Final = re.compile(r'`python -c "([^`]+)"`')
STEPS: Final = ("add", "swap", "drop")
SOMEBODY: Final = Identity(UUID("01980000-0000-7000-8000-000000000001"), "user")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    secrets.main(tmp_path / "secrets")
    return tmp_path / "secrets"


def _walk(folder: Path, name: str) -> list[str]:
    """Return what the file holds at the start and after each of the three steps."""
    held = [(folder / name).read_text()]
    for step in STEPS:
        rotate.rotate(folder, step, name)
        held.append((folder / name).read_text())
    assert len({part for one in held for part in one.split(",")}) == 2
    assert held[0] not in held[-1]
    assert held[-1] not in held[0]
    return held


def test_replicas_of_two_steps_accept_what_the_other_signs(folder: Path):
    for before, after in pairwise(_walk(folder, "OPENBELL_IDENTITY_SECRET")):
        for signs, accepts in ((before, after), (after, before)):
            token = Signer(signs, utc_now).sign(SOMEBODY, audience="alerts", request_id="one")
            assert Verifier(accepts, "alerts", utc_now).verify(token) == SOMEBODY


@pytest.mark.parametrize("name", ["OPENBELL_BROKER_CREDENTIAL_KEYS", "OPENBELL_ALERTS_TARGET_KEYS"])
def test_replicas_of_two_steps_open_what_the_other_seals(folder: Path, name: str):
    held = _walk(folder, name)
    sealed = Envelope(Keys(held[0]), os.urandom).seal(b"a credential", b"an account")
    for before, after in pairwise(held):
        one, other = (Envelope(Keys(value), os.urandom) for value in (before, after))
        if after == held[-1]:  # what `openbell rotate-credentials` does before the last step
            sealed = one.rewrap(sealed, b"an account")
        assert one.open(other.seal(b"x", b"y"), b"y") == other.open(one.seal(b"x", b"y"), b"y") == b"x"
        assert one.open(sealed, b"an account") == other.open(sealed, b"an account") == b"a credential"


@pytest.mark.parametrize("name", ["OPENBELL_API_KEY_SECRET", "OPENBELL_DATABASE_PASSWORD"])
def test_what_takes_one_is_made_anew(folder: Path, name: str):
    before = (folder / name).read_text()
    rotate.rotate(folder, "renew", name)
    after = (folder / name).read_text()
    assert after != before
    assert len(after) >= 32
    assert (folder / name).stat().st_mode & 0o777 == 0o644
    assert {path.name for path in folder.iterdir()} >= {name}
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("held", "step", "name", "given", "why"),
    [
        ("a,b", "add", "OPENBELL_IDENTITY_SECRET", None, "holds 2 already: finish the change before"),
        ("a", "swap", "OPENBELL_IDENTITY_SECRET", None, "holds 1, and `swap` is for two"),
        ("a", "drop", "OPENBELL_IDENTITY_SECRET", None, "holds 1, and `drop` is for two"),
        ("a,b,c", "drop", "OPENBELL_IDENTITY_SECRET", None, "holds 3, and `drop` is for two"),
        ("a", "renew", "OPENBELL_IDENTITY_SECRET", None, "takes several: add, swap, drop"),
        ("a", "add", "OPENBELL_API_KEY_SECRET", None, "takes one: renew"),
        ("a", "add", "OPENBELL_PAYMENT_STRIPE_WEBHOOK_SECRETS", None, "is made by somebody else"),
        ("a", "renew", "OPENBELL_PAYMENT_STRIPE_KEY", None, "is made by somebody else"),
        ("a", "add", "OPENBELL_IDENTITY_SECRET", "short", "at least 16 characters"),
        ("a", "add", "OPENBELL_IDENTITY_SECRET", "one," * 5, "no space and no comma"),
        ("a" * 16, "add", "OPENBELL_IDENTITY_SECRET", "a" * 16, "holds this one already"),
        ("a,b", "swap", "OPENBELL_IDENTITY_SECRET", "b" * 16, "takes no new secret"),
        ("k:x", "add", "OPENBELL_BROKER_CREDENTIAL_KEYS", "a-word-and-no-key-of-32-bytes", "OPENBELL_BROKER"),
    ],
)
def test_a_step_that_does_not_fit_changes_nothing(
    tmp_path: Path, held: str, step: str, name: str, given: str | None, why: str
):
    (tmp_path / name).write_text(held)
    with pytest.raises(Refused, match=re.escape(why)) as refused:
        rotate.rotate(tmp_path, step, name, given)
    assert (tmp_path / name).read_text() == held
    assert given is None or given not in str(refused.value)


def test_a_secret_that_is_nowhere_is_named(tmp_path: Path):
    with pytest.raises(Refused, match=r"OPENBELL_API_KEY_SECRET cannot be read: No such file"):
        rotate.rotate(tmp_path, "renew", "OPENBELL_API_KEY_SECRET")


def test_the_first_secret_of_others_is_put_in_as_it_is(folder: Path):
    name = "OPENBELL_PAYMENT_STRIPE_WEBHOOK_SECRETS"
    (now,) = rotate.rotate(folder, "add", name, "whsec_new_0000000000")
    assert now.endswith("--force-recreate payment")
    assert (folder / name).read_text() == "whsec_new_0000000000"


def _command(monkeypatch: pytest.MonkeyPatch, folder: Path, words: list[str], given: str = "") -> int:
    monkeypatch.setattr(sys, "argv", ["rotate", *words, "--folder", str(folder)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(given + "\n"))
    return rotate.main()


def test_a_secret_of_others_is_read_from_standard_input_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    name, old, new = "OPENBELL_PAYMENT_STRIPE_WEBHOOK_SECRETS", "whsec_old_0000000000", "whsec_new_0000000000"
    (tmp_path / name).write_text(old)
    assert _command(monkeypatch, tmp_path, ["add", name, "--given"], new) == 0
    assert (tmp_path / name).read_text() == f"{old},{new}"
    assert _command(monkeypatch, tmp_path, ["add", name, "--given"], new) == 1
    said = capsys.readouterr()
    assert "nothing was changed" in said.err
    assert not {old, new} & {*re.findall(r"\w+", said.out + said.err)}


def test_every_command_of_the_page_runs_in_the_order_it_stands_in(folder: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [line.partition("#")[0].split() for line in WORDS.findall(PAGES[0].read_text())]
    assert {words[0] for words in lines} == {"add", "swap", "drop", "renew"}
    for words in lines:
        words = words[: words.index("<")] if "<" in words else words  # noqa: PLW2901 - a shell's part
        if not (folder / words[1]).read_text():
            (folder / words[1]).write_text("the-one-before-0000000000")
        assert _command(monkeypatch, folder, words, "given-by-them-0000000000") == 0, words


def test_what_the_pages_make_secrets_with_makes_good_ones():
    made = [
        (page.stem, subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for page in PAGES
        for code in INLINE.findall(page.read_text())
    ]
    assert [stem for stem, _ in made] == ["secrets", "credentials"]
    word, key = (value.strip() for _, value in made)
    assert len(word) >= 32
    assert "," not in word
    assert Keys(f"new:{key}").current == "new"


def test_who_reads_a_secret_is_what_is_started_again():
    assert readers("OPENBELL_IDENTITY_SECRET") == sorted(SERVICES)
    assert readers("OPENBELL_DATABASE_PASSWORD") == sorted([*SERVICES, "migrations"])
    assert readers("OPENBELL_BROKER_CREDENTIAL_KEYS") == ["broker"]
    assert all(readers(name) for name in secrets.MADE_HERE)
    (now, *_) = what_then("renew", "OPENBELL_API_KEY_SECRET", "")
    assert now.endswith("--force-recreate api")


async def test_migrations_give_every_role_the_new_password(database_url: str):
    admin = await asyncpg.connect(database_url)
    try:
        for password in ("the-old-one-000000000000", "the-new:one's-0000000000"):
            await prepare(database_url, SERVICES, password)
            stored = await admin.fetch("select rolpassword from pg_authid where rolname = any($1)", ROLES)
            assert [_opens(row["rolpassword"], password) for row in stored] == [True] * len(SERVICES)
        assert not _opens(stored[0]["rolpassword"], "the-old-one-000000000000")
    finally:
        for role in ROLES:
            await admin.execute(f"alter role {role} password null")
        await admin.close()


ROLES: Final = [f"openbell_{service}" for service in SERVICES]


def _opens(stored: str, password: str) -> bool:
    """Whether a SCRAM-SHA-256 verifier of Postgres is this password's (RFC 5802)."""
    iterations, salt, key = re.fullmatch(r"SCRAM-SHA-256\$(\d+):(\S+)\$(\S+):\S+", stored).groups()  # pyright: ignore[reportOptionalMemberAccess]
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(iterations))
    client = hmac.digest(salted, b"Client Key", "sha256")
    return hashlib.sha256(client).digest() == base64.b64decode(key)
