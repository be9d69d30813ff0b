"""`make test-compose`: brings the core of docker-compose.yml up, until somebody is alerted through the published port.

Everything is as `make up` does it, in a project of its own: other names, another port, secrets made up for it, volumes
that go with it. Images that no registry gives have stand-ins (tests/deploy/stand_ins). What it brings up it takes down.

    python -m tests.deploy.compose
"""

import json
import os
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
        return _up_and_down((docker, "compose", "--project-name", PROJECT, *files, "--profile", "core"))


def _up_and_down(compose: tuple[str, ...]) -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = int(held.getsockname()[1])
    env = {**os.environ, "TAG": TAG, "OPENBELL_PORT": str(port)}
    try:
        _run(*compose, "up", "--build", "--wait", "--wait-timeout", str(UP_S), env=env)
        sys.stdout.write(f"alerted: {first_light(port)}\n")
        _run(*compose, "stop", env=env)
        wrong = _ended_badly(compose, env)
        sys.stdout.write(f"ended badly: {wrong}\n" if wrong else "all ended when asked to\n")
        return 1 if wrong else 0
    except BaseException:
        subprocess.run([*compose, "logs", "--tail", "20"], env=env, cwd=ROOT, check=False)
        raise
    finally:
        _run(*compose, "down", "--volumes", "--timeout", "25", env=env)


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
