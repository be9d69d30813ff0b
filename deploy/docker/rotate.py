"""Changes a secret of docker-compose.yml, with an overlap where it takes several. docs/secrets.md says which does.

    .venv/bin/python -m deploy.docker.rotate add OPENBELL_IDENTITY_SECRET        # old       -> old,new
    .venv/bin/python -m deploy.docker.rotate swap OPENBELL_IDENTITY_SECRET       # old,new   -> new,old
    .venv/bin/python -m deploy.docker.rotate drop OPENBELL_IDENTITY_SECRET       # new,old   -> new
    .venv/bin/python -m deploy.docker.rotate renew OPENBELL_API_KEY_SECRET       # old       -> new, if one is taken

Each step says what to restart and what comes then. A secret that somebody else makes is read from standard input with
--given. What would surprise you: it shows no secret, and it works on any folder of such files (--folder), as one that
was fetched from a cluster's store.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Final

import yaml

from deploy.docker import secrets
from deploy.docker.check import COMPOSE, ROOT
from shared.envelope import BadKeys, Keys

SEVERAL: Final = frozenset(
    {
        "OPENBELL_IDENTITY_SECRET",
        "OPENBELL_BROKER_CREDENTIAL_KEYS",
        "OPENBELL_ALERTS_TARGET_KEYS",
        "OPENBELL_ALERTS_RESEND_WEBHOOK_SECRET",
        "OPENBELL_PAYMENT_STRIPE_WEBHOOK_SECRETS",
    }
)
"""Settings that take several with commas between, of which the first signs or encrypts."""
LEAST: Final = 16
STEPS: Final = ("add", "swap", "drop", "renew")


class Refused(Exception):
    """The step does not fit what the file holds; nothing was changed."""


def changed(step: str, name: str, held: str, given: str | None) -> str:
    """Return what the file holds after the step. Raises Refused."""
    parts = [part.strip() for part in held.split(",") if part.strip()] if name in SEVERAL else [held]
    if (name in SEVERAL) == (step == "renew"):
        raise Refused(f"{name} takes {'several: add, swap, drop' if name in SEVERAL else 'one: renew'}")
    if step in {"add", "renew"}:
        if len(parts) > 1:
            raise Refused(f"{name} holds {len(parts)} already: finish the change before this one (swap, drop)")
        new = _new(name, given)
        if new in parts:
            raise Refused(f"{name} holds this one already")
        return _checked(name, ",".join([*parts, new])) if step == "add" else new
    if len(parts) != 2:  # noqa: PLR2004 - an old and a new one
        raise Refused(f"{name} holds {len(parts)}, and `{step}` is for two")
    if given is not None:
        raise Refused(f"`{step}` takes no new secret")
    return ",".join(reversed(parts)) if step == "swap" else parts[0]


def _checked(name: str, value: str) -> str:
    if name.endswith("_KEYS"):
        try:
            Keys(value)
        except BadKeys as error:
            raise Refused(f"{name}: {error}") from error
    return value


def _new(name: str, given: str | None) -> str:
    make = secrets.MADE_HERE.get(name)
    if given is None and make is None:
        raise Refused(f"{name} is made by somebody else: give the new one on standard input, with --given")
    new = given if given is not None else make() if make else ""
    if len(new) < LEAST or any(one.isspace() for one in new) or (name in SEVERAL and "," in new):
        raise Refused(f"a secret has at least {LEAST} characters, no space and no comma")
    return new


def readers(name: str) -> list[str]:
    """Return the services of docker-compose.yml that read a secret."""
    services = yaml.safe_load((ROOT / COMPOSE).read_text())["services"]
    return sorted(service for service, one in services.items() if name in one.get("secrets", []))


def what_then(step: str, name: str, last: str) -> list[str]:
    """Return the lines that say what to do after a step; `last` is the name of the key that the next step takes out."""
    restart = readers(name)
    lines = [
        f"now:  docker compose --profile core up --detach --wait --force-recreate {' '.join(restart)}"
        if restart
        else "now:  restart the services that read it, and wait until they are ready"
    ]
    match step:
        case "add" if name in secrets.MADE_HERE:
            lines.append(f"then: .venv/bin/python -m deploy.docker.rotate swap {name}")
        case "add":
            lines.append(
                f"then: change it where it was made; then .venv/bin/python -m deploy.docker.rotate swap {name}"
            )
        case "swap" if name.endswith("_KEYS"):
            lines.append("then: openbell rotate-credentials, until nothing lies under the key " + last)
            lines.append(
                f"then: .venv/bin/python -m deploy.docker.rotate drop {name}, when no backup needs it any more"
            )
        case "swap":
            lines.append(
                f"then: .venv/bin/python -m deploy.docker.rotate drop {name}, when nothing signed by the old one counts"
            )
        case _:
            pass
    return lines


def rotate(folder: Path, step: str, name: str, given: str | None = None) -> list[str]:
    """Do one step; return what to do then. Raises Refused."""
    path = folder / name
    try:
        held = path.read_text().strip()
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from error
    after = changed(step, name, held, given)
    fresh = path.with_name(f".{name}.new")
    fresh.write_text(after)
    fresh.chmod(path.stat().st_mode & 0o777)
    os.replace(fresh, path)  # noqa: PTH105 - in one step: a crash leaves the old one or the new one
    if not held:  # the first one: there is nothing to change over from
        return what_then("renew", name, "")
    return what_then(step, name, after.rpartition(",")[2].partition(":")[0] if name.endswith("_KEYS") else "")


def main() -> int:
    """Do what the words say; return the exit code."""
    parser = argparse.ArgumentParser(
        prog=".venv/bin/python -m deploy.docker.rotate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("name", help="of the setting, as its file is called")
    parser.add_argument("--given", action="store_true", help="read the new one from standard input")
    parser.add_argument("--folder", type=Path, default=secrets.FOLDER, help="where the files lie (%(default)s)")
    asked = parser.parse_args()
    try:
        said = rotate(asked.folder, asked.step, asked.name, sys.stdin.read().strip() if asked.given else None)
    except Refused as error:
        sys.stderr.write(f"nothing was changed: {error}\n")
        return 1
    sys.stdout.writelines(f"{line}\n" for line in said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
