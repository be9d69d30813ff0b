"""What checks what is deployed and pip does not bring: promtool, kustomize, checkov, operators' definitions.

    path = find("promtool")            # raises ToolMissing, which says what was tried

One on the PATH is taken as it is. Else it is fetched once, by the machine's own package manager or by Go, into
~/.cache/openbell/tools, which needs no rights and leaves the machine as it was. Who checks with a tool that cannot be
had says so and goes on: a laptop without a network is no fault of the code. With OPENBELL_CHECK_STRICT=1, as in the
workflows, what was not checked is a fault.

    python -m deploy.tools promtool    # print where it is
"""

import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FETCH_S: Final = 300
BUILD_S: Final = 1800
LOCK: Final = Path(__file__).with_name("tools.lock")


class ToolMissing(Exception):
    """A program is not on the PATH and could not be fetched."""


@dataclass(frozen=True, slots=True)
class GoModule:
    """Files that are published as a Go module: its path, version and `h1:` sum."""

    path: str
    version: str
    checksum: str

    def folder(self) -> Path:
        """Return the folder of its files; fetches it where it is not there.

        Raises ToolMissing when it cannot be had, ValueError when its sum is another.
        """
        name = f"{self.path}@{self.version}"
        with tempfile.TemporaryDirectory() as scratch:  # not here: a go.mod above would be read
            try:
                said = _run("go", "mod", "download", "-json", name, cwd=scratch)
            except subprocess.CalledProcessError as error:  # it tells in its answer why
                raise ToolMissing(f"{name} cannot be had: {json.loads(error.stdout or '{}').get('Error')}") from error
            except (OSError, subprocess.SubprocessError) as error:
                raise ToolMissing(f"{name} cannot be had: {_why(error)}") from error
        fetched = json.loads(said)
        if fetched["Sum"] != self.checksum:
            raise ValueError(f"{name} has the sum {fetched['Sum']}, and {self.checksum} is pinned")
        return Path(fetched["Dir"])


@dataclass(frozen=True, slots=True)
class Tool:
    """Where a program comes from: the Debian or Ubuntu package that holds it, or the Go module that builds it.

    A `locked` one is of Python, pinned in deploy/tools.lock, in an environment of its own. `source` is a module with a
    program below cmd/ that `go install` refuses, for its go.mod replaces others: it is built where it lies.
    """

    apt: str | None = None
    go: str | None = None
    source: GoModule | None = None
    called: str | None = None  # in the package, where that is another name
    locked: bool = False


TOOLS: Final[Mapping[str, Tool]] = {
    "promtool": Tool(apt="prometheus"),
    "prometheus": Tool(apt="prometheus"),
    "amtool": Tool(apt="prometheus-alertmanager"),
    "kubectl": Tool(locked=True),
    "checkov": Tool(locked=True),
    "cyclonedx-py": Tool(locked=True),
    "zizmor": Tool(locked=True),
    "actionlint": Tool(go="github.com/rhysd/actionlint/cmd/actionlint@v1.7.7"),
    # Minutes to build, once. What it looks up it fetches itself, daily.
    "grype": Tool(
        source=GoModule("github.com/anchore/grype", "v0.92.2", "h1:Rpa6TWV3burpEFdN28RkYiETb6L5nYXBkbvJvWvbqBU=")
    ),
    # What `docker compose config` is made of, without the rest.
    "compose-go": Tool(go="github.com/compose-spec/compose-go/v2/cmd@v2.16.2", called="cmd"),
}


def folder() -> Path:
    """Return where fetched programs lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openbell" / "tools"


@functools.cache
def find(name: str) -> Path:
    """Return the program; fetches it where it is not there. Raises ToolMissing."""
    return resolve(name, TOOLS[name], folder())


def strict() -> bool:
    """Whether a tool that cannot be had fails what checks with it."""
    return os.environ.get("OPENBELL_CHECK_STRICT", "0") not in {"", "0"}


def verdict(what: str, well: str, problems: Iterable[str]) -> int:
    """Tell what is wrong, or that it is well; return the exit code. Where a tool is missing, `what` was not checked."""
    try:
        found = list(problems)
    except ToolMissing as missing:
        sys.stderr.write(f"SKIPPED: {what} not checked: {missing}\n")
        return 1 if strict() else 0
    sys.stderr.writelines(f"{problem.rstrip()}\n" for problem in found)
    if not found:
        sys.stdout.write(f"{well}\n")
    return 1 if found else 0


def resolve(name: str, tool: Tool, into: Path) -> Path:
    """Return the program `name`, from the PATH, from `into`, or fetched into it. Raises ToolMissing."""
    if on_path := shutil.which(name):
        return Path(on_path)
    if tool.locked:
        return _by_lock(name, into)
    if tool.source:
        return _by_source(name, tool.source, into)
    ways: Sequence[tuple[str | None, Callable[[str, str, Path], None]]] = ((tool.apt, _by_apt), (tool.go, _by_go))
    into.mkdir(parents=True, exist_ok=True)
    tried: list[str] = []
    with (into / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run side by side; one fetches
        kept = into / name
        for source, fetch in ways:
            if kept.exists():
                break
            if source is not None:
                try:
                    fetch(source, tool.called or name, kept)
                except (OSError, subprocess.SubprocessError) as error:
                    tried.append(f"{source}: {_why(error)}")
    if not kept.exists():
        raise ToolMissing(f"{name} is not on the PATH and could not be fetched ({'; '.join(tried) or 'no source'})")
    return kept


def _by_lock(name: str, into: Path) -> Path:
    """Return a program of the environment that tools.lock describes, made where it is not there."""
    made = into / f"python-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    into.mkdir(parents=True, exist_ok=True)
    with (into / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "whole").exists():
            uv = (sys.executable, "-m", "uv")
            try:
                _run(*uv, "venv", "--quiet", "--clear", str(made), cwd=str(into))
                where = ("--python", str(made / "bin" / "python"), "--require-hashes")
                _run(*uv, "pip", "sync", "--quiet", *where, str(LOCK), cwd=str(into))
            except (OSError, subprocess.SubprocessError) as error:
                raise ToolMissing(f"{name} is not on the PATH, and {LOCK.name} cannot be had: {_why(error)}") from error
            (made / "whole").touch()
    return made / "bin" / name


def _by_source(name: str, module: GoModule, into: Path) -> Path:
    """Return a program that is built in its module's folder; one of another version does not count."""
    kept = into / f"{name}-{module.version}"
    into.mkdir(parents=True, exist_ok=True)
    with (into / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            try:
                with tempfile.TemporaryDirectory(dir=into) as scratch:
                    built = Path(scratch) / name
                    _run("go", "build", "-o", str(built), f"./cmd/{name}", cwd=str(module.folder()), seconds=BUILD_S)
                    built.rename(kept)
            except (OSError, subprocess.SubprocessError) as error:
                raise ToolMissing(f"{name} is not on the PATH and could not be built: {_why(error)}") from error
    return kept


def _by_apt(package: str, program: str, kept: Path) -> None:
    """Unpack a package of the distribution beside the machine's own programs: nothing is installed or started."""
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        _run("apt-get", "download", package, cwd=scratch)
        (archive,) = Path(scratch).glob("*.deb")
        _run("dpkg", "-x", str(archive), scratch, cwd=scratch)
        (Path(scratch) / "usr" / "bin" / program).rename(kept)


def _by_go(module: str, program: str, kept: Path) -> None:
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        _run("go", "install", module, cwd=scratch, GOBIN=scratch)
        (Path(scratch) / program).rename(kept)


def _run(*command: str, cwd: str, seconds: float = FETCH_S, **environment: str) -> bytes:
    return subprocess.run(  # noqa: S603 - the commands are those above
        command, cwd=cwd, env=os.environ | environment, check=True, capture_output=True, timeout=seconds
    ).stdout


def _why(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        return said[-1] if said else f"ended with {error.returncode}"
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{find(sys.argv[1])}\n")
    except ToolMissing as missing:
        sys.exit(str(missing))
