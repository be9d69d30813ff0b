"""`make restore`: Postgres of `make run` as it was at a moment; see deploy/local/backup.py.

    python -m deploy.local.restore [--from FOLDER] [--at 2026-11-23T14:30:00Z]

Without `--at`, all that was kept. The cluster is brought back beside the one that is there, looked at
(deploy/invariants.py), and takes its place only when all holds; the other one is set aside, not deleted.

What would surprise you: what the machine's own cluster wrote after the last backup is played too where it is the same
cluster, so restoring without `--at` a database that is whole brings it to where it was.
"""

import argparse
import asyncio
import gzip
import shutil
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from deploy import invariants
from deploy.local import postgres, processes
from deploy.local.backup import BACKUPS, BackupError, command, is_segment, number_of, start_segment, verify
from deploy.local.processes import ServerError
from deploy.local.stack import DATABASE, HOME

PLAY_S: Final = 3600.0
"""So long may WAL take to be played."""
SEGMENT_BYTES: Final = 16 * 1024 * 1024


def bring_back(home: Path, backups: Path, at: datetime | None, now: datetime) -> str:
    """Bring the cluster below `home` back from a folder of backups; return what there is to say.

    Raises BackupError, and then nothing is changed: a file is missing or broken, no backup is old enough, what was kept
    ends before `at`, what came back does not hold. ServerError where the cluster below `home` runs.
    """
    base = _choose(backups, at)
    verify(base)
    stamp = f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    old, fresh = home / "postgres", home / f"postgres.restored-{stamp}"
    with processes.claim(old):
        try:
            data = postgres.place(_made(fresh))
            shutil.copytree(base, data, dirs_exist_ok=True)
            data.chmod(0o700)
            _lay_wal(base, backups / "wal", old, data)
            told = _play(fresh, data, at)
        except BaseException:
            postgres.remove(fresh)
            raise
        aside = home / f"postgres.before-{stamp}"
        old.rename(aside)
        fresh.rename(old)
    until = f"what followed until {at.isoformat()}" if at else "all that followed"
    return (
        f"restored {base.name} and {until}\n{told}\n"
        f"the database before lies in {aside}; delete it when you miss nothing\n"
        "next: docs/runbooks/restored-postgres.md, and then `make backup`: the backups before cannot follow from here"
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _choose(backups: Path, at: datetime | None) -> Path:
    """Return the newest backup that began before `at`."""
    bases = sorted(folder for folder in backups.glob("base-*Z") if folder.is_dir())
    if not bases:
        raise BackupError(f"there is no backup in {backups}")
    if at is None:
        return bases[-1]
    before = [base for base in bases if base.name < f"base-{at.astimezone(UTC):%Y%m%dT%H%M%SZ}"]
    if not before:
        raise BackupError(f"no backup in {backups} is from before {at.isoformat()}; the oldest is {bases[0].name}")
    return before[-1]


def _lay_wal(base: Path, kept: Path, old: Path, data: Path) -> None:
    """Put all WAL that was written since the backup where Postgres looks for it. Raises BackupError at a hole."""
    into = data / "pg_wal"
    first = start_segment(base)
    found: dict[str, Path] = {file.stem: file for file in kept.glob("*.gz")}
    there = (old / "data").resolve()
    if _system(there) == _system(data):
        found = {file.stem: file for file in postgres.archive(old).glob("*.gz")} | found
        found = {file.name: file for file in (there / "pg_wal").glob("*") if file.is_file()} | found
    needed = {name: file for name, file in found.items() if not is_segment(name) or number_of(name) >= first}
    _whole(first, [name for name in needed if is_segment(name)] + [file.name for file in into.glob("0*")], kept)
    for name, file in needed.items():
        if is_segment(name) or name.endswith(".history"):
            _unpack(file, into / name)


def _whole(first: int, names: Iterable[str], kept: Path) -> None:
    numbers = {number_of(name) for name in names if is_segment(name)}
    missing = sorted(set(range(first, max(numbers, default=first) + 1)) - numbers)
    if missing:
        there = "".join(f"{part:08X}" for part in divmod(missing[0], 0x100))
        raise BackupError(f"WAL is missing: no file in {kept} is named like *{there}.gz; what follows cannot be played")


def _unpack(file: Path, to: Path) -> None:
    if file.suffix != ".gz":
        shutil.copyfile(file, to)
        return
    try:
        content = gzip.decompress(file.read_bytes())
    except (EOFError, OSError) as error:
        raise BackupError(f"{file} is broken: {error}") from error
    if is_segment(to.name) and len(content) != SEGMENT_BYTES:
        raise BackupError(f"{file} is broken: it holds {len(content)} bytes, not {SEGMENT_BYTES}")
    to.write_bytes(content)


def _system(data: Path) -> bytes | None:
    """Return the number that tells one cluster from another."""
    control = data / "global" / "pg_control"
    return control.read_bytes()[:8] if control.exists() else None


def _play(fresh: Path, data: Path, at: datetime | None) -> str:
    """Start the copy, let it play WAL up to `at`, and look whether it holds."""
    (data / "recovery.signal").touch()
    postgres.hand_over(data)
    settings: Mapping[str, str] = {
        "restore_command": "false",  # it all lies in pg_wal
        "recovery_target_action": "promote",
        "hot_standby": "off",  # nobody asks before it is wholly there
    }
    if at is not None:
        settings = {**settings, "recovery_target_time": at.astimezone(UTC).isoformat(sep=" ")}
    try:
        with postgres.start(fresh, more=settings, within_s=PLAY_S) as server:
            found = asyncio.run(invariants.examine(f"{server.dsn.rpartition('/')[0]}/{DATABASE}"))
    except ServerError as error:
        raise BackupError(f"Postgres does not come up from this backup: {error}") from error
    if found.broken:
        raise BackupError("what came back does not hold, so it is not used:\n" + "\n".join(found.broken))
    return found.told


def _moment(words: str) -> datetime:
    moment = datetime.fromisoformat(words)
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{words} names no time zone; write {words}Z for UTC")
    return moment


def _act(words: list[str]) -> str:
    parser = argparse.ArgumentParser(prog="make restore", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--from", dest="backups", type=Path, default=BACKUPS, help="of backups (default %(default)s)")
    parser.add_argument("--at", type=_moment, help="the moment, with its zone: 2026-11-23T14:30:00Z")
    asked = parser.parse_args(words)
    return bring_back(HOME, asked.backups, asked.at, datetime.now(UTC))


if __name__ == "__main__":
    sys.exit(command("make restore", _act))
