"""Looks at what services need, from where they run, and says how to mend what is wrong.

    python -m shared.doctor                          a line for each thing looked at
    python -m shared.doctor --json                   the same for programs
    python -m shared.doctor --gateway http://...     the gateway too

It reads the settings that services read and changes nothing. Exit code 1: something is broken; warnings are none.
"""

import argparse
import asyncio
import dataclasses
import json
import shutil
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import asyncpg
import httpx
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from shared.clock import utc_now
from shared.contracts.topics import TOPICS
from shared.db import Connection, Database, DatabaseUnavailable
from shared.envelope import BadKeys, Keys
from shared.identity import DEVELOPMENT_MARK, UnsafeSecret, identity_secret
from shared.messaging.kafka import KafkaAddress, KafkaError
from shared.messaging.ops.topics import partitions
from shared.schema import SERVICES, head
from shared.settings import Settings, SharedSettings

State = Literal["ok", "warning", "broken"]

OLDEST_PYTHON: Final = (3, 11)
POSTGRES: Final = 18
"""The version that everything is tested with; what is older is not known to work."""
SKEW_S: Final = 1.0
"""So far may the database's clock be from ours: leases and retries go by both."""
LEAST_DISK: Final = 2 * 1024**3
ANSWER_S: Final = 5.0
MIGRATE: Final = "make migrate (or python -m shared.migrate up, as a role that may create roles)"

SEALED: Final[Mapping[str, tuple[str, str]]] = {
    "broker": ("broker_credential_keys", "select key_id from credentials"),
    "alerts": (
        "alerts_target_keys",
        "select key_id from channels where target = '' union all select key_id from sealing where key_id is not null",
    ),
}
"""By service: the setting that holds its keys, and what tells under which key each thing lies."""


class KeySettings(Settings):
    """Keys that services encrypt with; each service reads its own."""

    model_config = SettingsConfigDict(env_prefix="OPENBELL_", env_file=".env", extra="ignore")

    broker_credential_keys: SecretStr | None = None
    alerts_target_keys: SecretStr | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `mend` says what to do where it is not well."""

    name: str
    state: State
    said: str
    mend: str = ""


async def examine(settings: SharedSettings, gateway: str | None = None) -> list[Finding]:
    """Look at everything; what does not answer is a finding, too."""
    places = dict(settings.upstreams) | ({"gateway": gateway} if gateway else {})
    found = await asyncio.gather(
        _postgres(settings),
        _kafka(KafkaAddress.of(settings)),
        *(_answering(*place) for place in sorted(places.items())),
    )
    return [_python(), _secret(settings), _disk(Path.cwd()), *(one for part in found for one in part)]


def _python() -> Finding:
    said = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info >= OLDEST_PYTHON:
        return Finding("python", "ok", said)
    return Finding("python", "broken", said, "install Python 3.11 or newer, then make install")


def _secret(settings: SharedSettings) -> Finding:
    try:
        identity_secret(settings)
    except UnsafeSecret as error:
        return Finding("identity secret", "broken", str(error), "set OPENBELL_IDENTITY_SECRET to 32 random characters")
    return Finding("identity secret", "ok", f"fit for {settings.environment}")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    said = f"{free / 1024**3:.1f} GiB free at {folder}"
    if free >= LEAST_DISK:
        return Finding("disk", "ok", said)
    return Finding("disk", "warning", said, "docs/runbooks/disk.md")


async def _postgres(settings: SharedSettings) -> list[Finding]:
    found: list[Finding] = []
    for service in SERVICES:
        try:
            async with asyncio.timeout(ANSWER_S), _connected(settings, service) as connection:
                if not found:
                    found += await _server(connection)
                found.append(await _schema(connection, service))
                if service in SEALED and found[-1].state == "ok":
                    found += await _keys(connection, service, settings)
        except (DatabaseUnavailable, asyncpg.PostgresError, OSError, TimeoutError) as error:
            found.append(_away(settings, service, error))
            if not isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
                return found  # the others would say the same
    return found


@asynccontextmanager
async def _connected(settings: SharedSettings, service: str) -> AsyncGenerator[Connection]:
    connection = await Database(settings.service_database_url(service), schema=service).connect()
    try:
        yield connection
    finally:
        connection.terminate()


def _away(settings: SharedSettings, service: str, error: Exception) -> Finding:
    at = urlsplit(settings.database_url)
    said = f"{at.hostname}:{at.port or 5432}: {type(error).__name__}"
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        return Finding(f"schema {service}", "broken", said, f"no login as openbell_{service}: {MIGRATE}")
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return Finding("postgres", "broken", said, f"create the database {at.path.lstrip('/')}, then {MIGRATE}")
    return Finding("postgres", "broken", said, "start it, or set OPENBELL_DATABASE_URL to where it is")


async def _server(connection: Connection) -> list[Finding]:
    major = connection.get_server_version().major
    theirs: datetime = await connection.fetchval("select clock_timestamp()")
    skew_s = abs((utc_now() - theirs).total_seconds())
    clocks = f"{skew_s:.2f} s apart"
    return [
        Finding("postgres", "ok", f"version {major}")
        if major >= POSTGRES
        else Finding("postgres", "warning", f"version {major}", f"tested with {POSTGRES}: upgrade"),
        Finding("clocks", "ok", clocks)
        if skew_s < SKEW_S
        else Finding("clocks", "broken", clocks, "let NTP set the clocks of this machine and of Postgres'"),
    ]


async def _schema(connection: Connection, service: str) -> Finding:
    name, needed = f"schema {service}", head(service)
    try:
        known: str | None = await connection.fetchval("select version_num from alembic_version")
    except asyncpg.UndefinedTableError:
        known = None
    if known is None:
        return Finding(name, "broken", "there is none", MIGRATE)
    if known < needed:
        return Finding(name, "broken", f"at {known}, this code needs {needed}", MIGRATE)
    if known > needed:
        return Finding(name, "warning", f"at {known}, this code knows {needed}", "deploy the newer code")
    return Finding(name, "ok", f"at {known}")


async def _keys(connection: Connection, service: str, settings: SharedSettings) -> list[Finding]:
    """Hold the keys that things lie under against those of the setting; nothing where it is not read here."""
    field, statement = SEALED[service]
    setting, value = f"OPENBELL_{field.upper()}", getattr(KeySettings(), field)
    if value is None and settings.environment == "production":
        return []
    name, mend = f"keys {service}", "put the key back into the setting, last: docs/runbooks/credentials.md"
    try:
        known = frozenset({DEVELOPMENT_MARK}) if value is None else Keys(value.get_secret_value()).ids
    except BadKeys as error:
        return [Finding(name, "broken", f"{setting}: {error}", "docs/runbooks/credentials.md")]
    under = Counter(row["key_id"] for row in await connection.fetch(statement))
    if missing := sorted(under.keys() - known):
        said = f"{sum(under[key] for key in missing)} lie under keys that are not in {setting}: {', '.join(missing)}"
        return [Finding(name, "broken", said, mend)]
    return [Finding(name, "ok", f"{under.total()} sealed, all under keys that are here")]


async def _kafka(address: KafkaAddress) -> list[Finding]:
    try:
        async with asyncio.timeout(2 * ANSWER_S):
            there = await partitions(address)
    except (KafkaError, OSError, TimeoutError) as error:
        said = f"{address.bootstrap}: {type(error).__name__}"
        return [Finding("kafka", "broken", said, "start it, or set OPENBELL_KAFKA_BOOTSTRAP to where it is")]
    return [Finding("kafka", "ok", f"answers at {address.bootstrap}"), *topics(there)]


def topics(there: Mapping[str, int]) -> list[Finding]:
    """Hold what Kafka has, the partitions of each topic, against what the contracts say."""
    missing = sorted(topic.name for topic in TOPICS if topic.name not in there)
    narrow = sorted(topic.name for topic in TOPICS if 0 < there.get(topic.name, 0) < topic.partitions)
    found: list[Finding] = []
    if missing:
        mend = "start a service that may create topics, or create them from shared/contracts/topics.py"
        found.append(Finding("topics", "broken", f"missing: {', '.join(missing)}", mend))
    if narrow:
        mend = "they hold the order of their keys by partition: widen them only while nothing is on its way"
        found.append(Finding("topics", "warning", f"fewer partitions than meant: {', '.join(narrow)}", mend))
    return found or [Finding("topics", "ok", f"all {len(TOPICS)} there")]


async def _answering(name: str, url: str) -> list[Finding]:
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_S) as http:
            answer = await http.get(f"{url.rstrip('/')}/readyz")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return [Finding(name, "broken", f"{url}: {type(error).__name__}", "docs/runbooks/service-down.md")]
    if answer.is_success:
        return [Finding(name, "ok", f"ready at {url}")]
    return [Finding(name, "broken", f"{url} answers {answer.status_code}", "docs/runbooks/service-down.md")]


def _line(one: Finding) -> str:
    return f"{one.state:<8} {one.name:<18} {one.said}" + (f"\n{'':8} {'':18} mend: {one.mend}" if one.mend else "")


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m shared.doctor", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--gateway", help="where the gateway is, to look at it too")
    asked = parser.parse_args(arguments)
    try:
        settings = SharedSettings()
    except ValidationError as error:
        wrong = "; ".join(f"OPENBELL_{'.'.join(map(str, one['loc'])).upper()}: {one['msg']}" for one in error.errors())
        found = [Finding("settings", "broken", wrong, "see .env.example")]
    else:
        found = asyncio.run(examine(settings, asked.gateway))
    lines = (
        json.dumps([dataclasses.asdict(one) for one in found], indent=2) if asked.json else "\n".join(map(_line, found))
    )
    sys.stdout.write(f"{lines}\n")
    return int(any(one.state == "broken" for one in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
