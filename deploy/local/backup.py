"""`make backup`, `make restore`: Postgres of `make run`, to any moment since the oldest backup.

    python -m deploy.local.backup [--to FOLDER]
    python -m deploy.local.restore [--from FOLDER] [--at 2026-11-23T14:30:00Z]

A folder of backups holds `base-<when>/`, each a copy of the whole cluster with a manifest of checksums, and `wal/`,
what was written since. Postgres runs on meanwhile; where it does not run, it is started for as long as it takes.

What would surprise you: WAL is kept from the first backup on, for there is nothing to play it onto before; and only
what stands in the folder survives the machine: what is later than the last backup comes from the machine's own disk.
"""

import argparse
import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import asyncpg

from deploy.local import postgres
from deploy.local.processes import ServerError
from deploy.local.stack import HOME

BACKUPS: Final = HOME / "backups"
SEGMENTS_A_LOG: Final = 0x100
"""WAL segments of 16 MiB in one "log file", the middle part of their names."""


class BackupError(Exception):
    """A backup cannot be taken, or is not whole; the message says which file, and nothing was changed."""


def take(home: Path, to: Path, now: datetime) -> Path:
    """Copy the cluster below `home` into a new folder in `to`, checked; return it. Raises BackupError."""
    base = to / f"base-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    if base.exists():
        raise BackupError(f"{base} is there already")
    if not (home / "postgres" / "data" / "PG_VERSION").exists():
        raise BackupError(f"there is no database below {home}: `make run` makes one")
    to.mkdir(parents=True, exist_ok=True)
    fresh = to / f"{base.name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    with _running(home / "postgres") as dsn:
        archive = postgres.archive(home / "postgres")
        postgres.keep_wal(home / "postgres")
        try:
            run("pg_basebackup", "-d", dsn, "-D", str(fresh), "--checkpoint=fast", "--manifest-checksums=SHA256")
            verify(fresh)
        except BackupError:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        asyncio.run(_archived(dsn))
        _copy_wal(archive, to / "wal", older_than=start_segment(fresh))
    fresh.rename(base)
    return base


def verify(base: Path) -> None:
    """Hold every file of a base backup, and its WAL, against its manifest. Raises BackupError."""
    if not (base / "backup_manifest").is_file():
        raise BackupError(f"{base} is no backup: it has no backup_manifest")
    run("pg_verifybackup", "--quiet", "--exit-on-error", str(base))


def run(tool: str, *words: str) -> None:
    """Run one of Postgres' own programs. Raises BackupError with what it said."""
    command = [str(postgres.tool(tool)), *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own command line
    if done.returncode:
        raise BackupError(f"{tool}: {(done.stderr or done.stdout).strip()}")


def start_segment(base: Path) -> int:
    """Return the number of the first WAL segment that a base backup needs."""
    label = (base / "backup_label").read_text().splitlines()[0]  # START WAL LOCATION: 0/2000028 (file 0000...)
    return number_of(label.rpartition("file ")[2].rstrip(")"))


def number_of(name: str) -> int:
    """Return a WAL segment's number, on whichever timeline, from the 24 digits that its file is named by."""
    return int(name[8:16], 16) * SEGMENTS_A_LOG + int(name[16:24], 16)


def is_segment(name: str) -> bool:
    """Whether a file's name is a WAL segment's."""
    return len(name) == 24 and set(name) <= set("0123456789ABCDEF")  # noqa: PLR2004 - Postgres' format


def _copy_wal(archive: Path, to: Path, older_than: int) -> None:
    """Copy WAL that is not there yet. The machine's own copy of what the newest backup needs no more goes then."""
    to.mkdir(exist_ok=True)
    for file in sorted(archive.glob("*.gz")):
        kept = to / file.name
        if not kept.exists():
            new = to / f"{file.name}.new"
            shutil.copyfile(file, new)
            new.rename(kept)
        if is_segment(file.stem) and number_of(file.stem) < older_than:
            file.unlink()


@contextmanager
def _running(folder: Path) -> Generator[str]:
    """Give the running server's address, or start it for as long as this lasts."""
    try:
        server = postgres.start(folder)
    except ServerError:
        if (dsn := postgres.running(folder)) is None:
            raise
        yield dsn
        return
    with server:
        yield server.dsn


async def _archived(dsn: str) -> None:
    """Wait until what was written up to now is in the archive."""
    admin = await asyncpg.connect(dsn)
    try:
        name = await admin.fetchval("select pg_walfile_name(pg_switch_wal() - 1)")
        async with asyncio.timeout(60):
            while (await admin.fetchval("select last_archived_wal from pg_stat_archiver") or "") < name:  # noqa: ASYNC110 - Postgres' state, which nobody tells
                await asyncio.sleep(0.05)
    except TimeoutError:
        failed = await admin.fetchval("select last_failed_wal from pg_stat_archiver")
        raise BackupError(f"WAL is not archived ({failed or 'no attempt'}): see server.log of Postgres") from None
    finally:
        await admin.close()


def command(prog: str, act: Callable[[list[str]], str]) -> int:
    """Run a command line that answers a line; what is wrong becomes one line on stderr and exit code 1."""
    try:
        sys.stdout.write(f"{act(sys.argv[1:])}\n")
    except (BackupError, ServerError, OSError) as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 1
    return 0


def _act(words: list[str]) -> str:
    parser = argparse.ArgumentParser(prog="make backup", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--to", type=Path, default=BACKUPS, help="the folder of backups (default %(default)s)")
    base = take(HOME, parser.parse_args(words).to, datetime.now(UTC))
    return f"backed up to {base}; copy {base.parent} off this machine"


if __name__ == "__main__":
    sys.exit(command("make backup", _act))
