"""Checks docker-compose.yml and the Dockerfile; part of `make check`.

    python -m deploy.docker.check

`docker compose config` reads the file where compose is there; elsewhere compose-go does, of which compose is made.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from deploy.tools import find, verdict

ROOT: Final = Path(__file__).parents[2]
COMPOSE: Final = "docker-compose.yml"
PROFILES: Final = ("core", "observability", "dev")


def reader(file: str | Path = COMPOSE) -> Sequence[str | Path]:
    """Return the command that reads a compose file and says what it does not understand. Raises ToolMissing."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:  # noqa: S603 - ours
        return (docker, "compose", "-f", file, "config", "-q")
    return (find("compose-go"), file)


def run(command: Sequence[str | Path]) -> str | None:
    """Run a command beside the file; return what it complained about."""
    env = os.environ | {"COMPOSE_PROFILES": ",".join(PROFILES)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    return f"{done.stdout}{done.stderr}" if done.returncode else None


def problems() -> Iterator[str]:
    """Yield what is wrong. Raises ToolMissing."""
    if said := run([Path(sys.executable).with_name("hadolint"), "Dockerfile"]):
        yield said
    if said := run(reader()):
        yield said


def main() -> int:
    """Tell what is wrong; return the exit code."""
    return verdict("docker-compose.yml was", "Docker: Dockerfile and docker-compose.yml are well.", problems())


if __name__ == "__main__":
    sys.exit(main())
