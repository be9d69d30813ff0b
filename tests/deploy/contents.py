"""`make test-image` looks into images: what runs and nothing else, no secret, nothing that builds, not too large.

    python -m tests.deploy.contents IMAGE...

What would surprise you: it reads the layers as they are pushed, not the file system that they add up to. A file that
a later layer deletes is still there for whoever pulls the image. The base image's layers are searched for what builds,
and for nothing else: they are its makers' (pip is in there).
"""

import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from deploy.docker.check import ROOT
from tests.deploy.stand_ins import docker

MB: Final = 1_000_000
MOST_MB: Final[Mapping[str, int]] = {"": 750, "api": 125, "broker": 490, "detector": 400}
"""What may lie on top of the base (about 125 MB), by the service it was built for: the gateway's is 250 in all. The
others follow from docs/deploy.md, which has what was measured."""
OURS: Final = "/layers/venv"  # in the history: from this layer on all is ours
USER: Final = "10001:10001"
BUILDS: Final = re.compile(r"gcc|g\+\+|cc|c\+\+|cpp|ld|as|ar|make|cmake|ninja|strip|git|cargo|rustc|go|uv|maturin|node")
NAMES: Final = re.compile(
    r"(^|/)(\.git|\.env[^/]*|\.netrc|\.pypirc|\.npmrc|pip\.conf|id_[a-z0-9]+|tests|[^/]+\.(key|p12|pfx|pem))$"
)
PUBLIC: Final = "certifi/cacert.pem"
SECRET: Final = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|\b(?:sk|rk)_live_\w{8}|\bwhsec_[\w+/]{20}|\bAKIA[0-9A-Z]{16}\b|\bgh[ps]_\w{36}|://[^\s/:@{}\"']+:[^\s/@{}\"']+@"
)
TOLD: Final = re.compile(r"SECRET|PASSWORD|TOKEN|(?<!GPG_)KEY|CREDENTIAL|(?:PIP|UV)_", re.IGNORECASE)
MADE: Final = ("__pycache__", ".cache")


def problems(saved: Path, known: frozenset[str]) -> Iterator[str]:
    """Yield what is wrong with an image that `docker save` wrote; `known` are the files of ours that may be in it."""
    with tarfile.open(saved) as archive:

        def content(name: str) -> Any:
            return json.load(_opened(archive, name))

        manifest = content("manifest.json")[0]
        config = content(manifest["Config"])
        yield from _told(config)
        below = _below(config["history"])
        bytes_of_ours = 0
        for number, name in enumerate(manifest["Layers"]):
            with tarfile.open(fileobj=_opened(archive, name)) as layer:
                for member in layer:
                    yield from _anywhere(member)
                    if number >= below:
                        bytes_of_ours += member.size
                        yield from _ours(layer, member, known)
    service = dict(line.split("=", 1) for line in config["config"]["Env"]).get("SERVICE", "")
    if service in MOST_MB and bytes_of_ours > MOST_MB[service] * MB:
        yield f"{bytes_of_ours / MB:.0f} MB on top of the base, and {MOST_MB[service]} are the most"


def _below(history: Sequence[Mapping[str, Any]]) -> int:
    """Return how many layers are the base's."""
    words = [one.get("created_by") or "" for one in history if not one.get("empty_layer")]
    return next(number for number, said in enumerate(words) if OURS in said)


def _told(config: Mapping[str, Any]) -> Iterator[str]:
    told = config["config"]
    if told.get("User") != USER:
        yield f"runs as {told.get('User') or 'root'}, not as {USER}"
    if "/readyz" not in str(told.get("Healthcheck")):
        yield "has no health check"
    yield from (
        f"tells {line.partition('=')[0]} to everybody" for line in told["Env"] if TOLD.search(line.partition("=")[0])
    )
    for one in config["history"]:
        said = one.get("created_by") or ""
        if said.startswith(("ARG", "ENV")) and TOLD.search(said):
            yield f"tells in its history: {said}"
        if SECRET.search(said.encode()):
            yield f"has a secret in its history: {said[:40]}..."


def _anywhere(member: tarfile.TarInfo) -> Iterator[str]:
    path = PurePosixPath(member.name)
    if path.parent.name in {"bin", "sbin"} and BUILDS.fullmatch(path.name):
        yield f"{path} builds"


def _ours(layer: tarfile.TarFile, member: tarfile.TarInfo, known: frozenset[str]) -> Iterator[str]:
    path = PurePosixPath(member.name)
    top = path.parts[0] if path.parts else ""
    if top not in {"venv", "app", ""}:
        yield f"{path} is neither code nor what it needs"
    if NAMES.search(str(path)) and not str(path).endswith(PUBLIC):
        yield f"{path} has no business here"
    if member.uid or member.gid or (not member.issym() and member.mode & 0o022) or member.mode & 0o6000:
        yield f"{path} may be changed: owner {member.uid}:{member.gid}, mode {member.mode:o}"
    if top == "app" and member.isfile():
        if not {*path.parts} & {*MADE} and str(path.relative_to("app")) not in known:
            yield f"{path} is no file of the repository"
        if (read := layer.extractfile(member)) and (found := SECRET.search(read.read())):
            yield f"{path} holds a secret: {found[0][:12].decode(errors='replace')}..."


def _opened(archive: tarfile.TarFile, name: str) -> Any:
    """Return a file of an archive. Raises KeyError when it is not there."""
    return archive.extractfile(name)


def known_files() -> frozenset[str]:
    """Return the files below services and shared that git knows."""
    command = ("git", "ls-files", "services", "shared")
    return frozenset(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines())


def main() -> int:
    """Look; return the exit code."""
    worst = 0
    for image in sys.argv[1:]:
        with tempfile.TemporaryDirectory(prefix="openbell-contents-") as scratch:
            saved = Path(scratch) / "image.tar"
            docker("save", "--output", str(saved), image)
            found = list(problems(saved, known_files()))
        sys.stderr.writelines(f"{image}: {problem}\n" for problem in found)
        if found:
            worst = 1
        else:
            sys.stdout.write(f"{image} holds what runs and nothing else.\n")
    return worst


if __name__ == "__main__":
    sys.exit(main())
