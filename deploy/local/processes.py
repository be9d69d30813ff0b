"""Start, find again and stop the servers that run on this machine.

Surprise: on Linux a child dies with the thread that started it (PDEATHSIG), so start servers from the main
thread or from one that lives as long as they shall.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

_PR_SET_PDEATHSIG = 1
# Loaded at import: between fork and exec only a plain C call is safe.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class ServerError(RuntimeError):
    """A local server did not start or stop as it should; the message says where its log is."""


@dataclass(frozen=True)
class RunAs:
    """The user that a server runs as; root needs one for Postgres, which refuses root."""

    uid: int
    gid: int


@dataclass
class Server:
    """One child process, its log, and the lock on its folder."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]
    stop_signal: signal.Signals
    lock: IO[str]
    _stopped: bool = field(default=False, init=False)

    @property
    def pid(self) -> int:
        """Process id, for chaos tests that kill it themselves."""
        return self.process.pid

    @property
    def log(self) -> Path:
        """Where the server's output goes."""
        return self.folder / "server.log"

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Return when `ready()` is true; if the server dies or is late, stop it and raise ServerError."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self.process.poll() is not None:
                self.stop()
                raise ServerError(f"{self.name} ended with code {self.process.returncode}:\n{self._tail()}")
            if time.monotonic() > deadline:
                self.stop()
                raise ServerError(f"{self.name} was not ready in {timeout_s:.0f} s:\n{self._tail()}")
            time.sleep(0.02)

    def stop(self, grace_s: float = 15) -> None:
        """Ask the server to end, kill it after `grace_s`; a second call does nothing."""
        if self._stopped:
            return
        self._stopped = True
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._release()

    def kill(self) -> None:
        """Kill -9, as a power cut would; the data folder may be started again at once."""
        self._stopped = True
        self.process.kill()
        self.process.wait()
        self._release()

    def _release(self) -> None:
        (self.folder / "pid").unlink(missing_ok=True)
        self.lock.close()

    def _tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([*lines, f"(log: {self.log})"])


def claim(folder: Path) -> IO[str]:
    """Lock `folder` for this process and stop a server that an earlier, dead owner left in it.

    Raises ServerError when a live process owns the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ServerError(f"{folder} is in use by another running Openbell; stop that one first") from None
    _stop_leftover(folder)
    return lock


def start(
    name: str,
    command: Sequence[str],
    *,
    folder: Path,
    lock: IO[str],
    stop_signal: signal.Signals = signal.SIGTERM,
    env: Mapping[str, str] | None = None,
    run_as: RunAs | None = None,
) -> Server:
    """Start `command` with its output in `folder/server.log`; `lock` comes from `claim(folder)`."""
    (folder / "server.log").unlink(missing_ok=True)
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own command line
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            # Ctrl-C reaches us alone; we stop the servers in order.
            start_new_session=True,
            preexec_fn=_die_with_parent(stop_signal),  # noqa: PLW1509 - one C call, see _LIBC
            user=run_as.uid if run_as else None,
            group=run_as.gid if run_as else None,
            extra_groups=[] if run_as else None,
            cwd="/",
        )
    # With its start time, so that a stranger who got the same pid later is never stopped for it.
    (folder / "pid").write_text(f"{process.pid} {psutil.Process(process.pid).create_time()}")
    return Server(name, folder, process, stop_signal, lock)


def keep_ports(folder: Path, count: int) -> list[int]:
    """`count` free ports, the same as last time where they are still free (kept in `folder/ports`)."""
    file = folder / "ports"
    known = [int(word) for word in file.read_text().split()] if file.exists() else []
    if len(known) != count or not all(_is_free(port) for port in known):
        known = _free_ports(count)
        file.write_text(" ".join(map(str, known)))
    return known


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _die_with_parent(stop_signal: signal.Signals) -> Callable[[], None] | None:
    if _LIBC is None:  # no such call outside Linux; claim() stops a leftover at the next start
        return None
    libc, parent, number = _LIBC, os.getpid(), int(stop_signal)

    def before_exec() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return before_exec


def is_alive(pid: int) -> bool:
    """Whether `pid` runs; a zombie that nobody reaps (PID 1 of a container may not) does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _stop_leftover(folder: Path) -> None:
    """End the server whose pid stands in the folder, if it still is that server."""
    file = folder / "pid"
    if not file.exists():
        return
    with contextlib.suppress(psutil.NoSuchProcess, ValueError):
        pid, started = file.read_text().split()
        process = psutil.Process(int(pid))
        if process.create_time() == float(started):
            process.send_signal(signal.SIGINT)
            if not _has_ended(process.pid, 15):
                process.kill()
                _has_ended(process.pid, 5)
    file.unlink(missing_ok=True)


def _has_ended(pid: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
