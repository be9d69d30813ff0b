"""`make test-compose`: brings the core of docker-compose.yml up, until somebody is alerted through the published port.

Then Postgres is dumped, dropped and restored, as docs/backup.md says, and secrets are changed, as docs/secrets.md
says: the alert has to be there, for the key that was made before.

Everything is as `make up` does it, in a project of its own: other names, another port, secrets made up for it, volumes
that go with it. Images that no registry gives have stand-ins (tests/deploy/stand_ins). What it brings up it takes down.

    python -m tests.deploy.compose
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

from deploy.docker import secrets
from deploy.docker.check import COMPOSE, ROOT
from deploy.docker.rotate import rotate
from deploy.services import SERVICES
from tests.deploy.containers import first_light
from tests.deploy.stand_ins import image, written

PROJECT: Final = "openbell-test-compose"
TAG: Final = "test-compose"
OTHERS: Final = ("postgres", "kafka")
UP_S: Final = 300


def changes(folder: Path) -> dict[str, Any]:
    """Return what is laid over docker-compose.yml: other images and secrets, and the simulator's market.

    Raises RuntimeError when an image cannot be had.
    """
    needed = yaml.safe_load((ROOT / COMPOSE).read_text())["secrets"]
    ours: dict[str, Any] = {one.name: {"environment": {"OPENBELL_DATA_SOURCE": "simulator"}} for one in SERVICES}
    ours["migrations"] = {"build": {"args": {"PYTHON_IMAGE": image(written("python"))}}}
    others = {name: {"image": image(written(name))} for name in OTHERS}
    made = {name: {"file": str(folder / Path(one["file"]).name)} for name, one in needed.items()}
    return {"services": {**ours, **others}, "secrets": made}


def main() -> int:
    """Run it; return the exit code."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        sys.exit("`make test-compose` needs Docker with compose 2.24 or newer")
    with tempfile.TemporaryDirectory(prefix="openbell-compose-") as scratch:
        secrets.main(Path(scratch) / "secrets")
        over = Path(scratch) / "changes.json"
        over.write_text(json.dumps(changes(Path(scratch) / "secrets")))
        files = ("--file", COMPOSE, "--file", str(over), "--project-directory", str(ROOT), "--env-file", os.devnull)
        compose = (docker, "compose", "--project-name", PROJECT, *files, "--profile", "core")
        return _up_and_down(compose, Path(scratch) / "secrets")


def _up_and_down(compose: tuple[str, ...], folder: Path) -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = int(held.getsockname()[1])
    env = {**os.environ, "TAG": TAG, "OPENBELL_PORT": str(port)}
    try:
        _run(*compose, "up", "--build", "--wait", "--wait-timeout", str(UP_S), env=env)
        alerted = first_light(port)
        sys.stdout.write(f"alerted: {alerted.title}\n")
        _dump_and_restore(compose, env)
        back = alerted.still(port)
        sys.stdout.write(f"dumped, dropped and restored: the alert is {'there' if back else 'gone'}\n")
        _rotate(compose, env, folder)
        known = alerted.still(port)
        sys.stdout.write(f"secrets changed: the key made before is {'good' if known else 'refused'}\n")
        _run(*compose, "stop", env=env)
        wrong = _ended_badly(compose, env)
        sys.stdout.write(f"ended badly: {wrong}\n" if wrong else "all ended when asked to\n")
        return 1 if wrong or not (back and known) else 0
    except BaseException:
        subprocess.run([*compose, "logs", "--tail", "20"], env=env, cwd=ROOT, check=False)
        raise
    finally:
        _run(*compose, "down", "--volumes", "--timeout", "25", env=env)


def _dump_and_restore(compose: tuple[str, ...], env: dict[str, str]) -> None:
    """Do what docs/backup.md says, "In containers"."""
    ours = [one.name for one in SERVICES]
    inside = (*compose, "exec", "-T", "postgres")
    with tempfile.TemporaryFile() as dump:
        dumps = (*inside, "pg_dump", "-U", "postgres", "-Fc", "openbell")
        subprocess.run(dumps, env=env, cwd=ROOT, check=True, stdout=dump)
        _run(*compose, "stop", *ours, env=env)
        _run(*inside, "dropdb", "-U", "postgres", "openbell", env=env)
        _run(*inside, "createdb", "-U", "postgres", "openbell", env=env)
        dump.seek(0)
        restores = (*inside, "pg_restore", "-U", "postgres", "--exit-on-error", "-d", "openbell")
        subprocess.run(restores, env=env, cwd=ROOT, check=True, stdin=dump)
    _run(*compose, "up", "--wait", "--wait-timeout", str(UP_S), *ours, env=env)


def _rotate(compose: tuple[str, ...], env: dict[str, str], folder: Path) -> None:
    """Change secrets as docs/secrets.md says, and start again what the command names."""
    for step, name in (
        ("add", "OPENBELL_IDENTITY_SECRET"),
        ("renew", "OPENBELL_API_KEY_SECRET"),
        ("renew", "OPENBELL_DATABASE_PASSWORD"),
    ):
        now, *_ = rotate(folder, step, name)
        _run(*compose, *shlex.split(now.partition("--profile core ")[2]), env=env)


def _run(*command: str, env: dict[str, str]) -> None:
    subprocess.run(command, env=env, cwd=ROOT, check=True)


def _ended_badly(compose: tuple[str, ...], env: dict[str, str]) -> dict[str, int]:
    """Return services of ours that did not end by themselves when asked to, with their exit code."""
    said = subprocess.run(
        [*compose, "ps", "--all", "--format", "json"], env=env, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    ended = {one["Service"]: int(one["ExitCode"]) for one in map(json.loads, said.splitlines())}
    ours = [one.name for one in SERVICES]
    return {name: ended.get(name, -1) for name in ours if ended.get(name) != 0}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"make test-compose: {error}")
