"""The alerts service to be killed: its lives, what it is told, and what arrives at the stand-ins outside of it."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx

from shared.clock import utc_now
from shared.contracts.base import Event
from shared.contracts.broker import OrderFilled
from shared.identity import HEADER, Identity, Signer
from shared.messaging.kafka import KafkaAddress, Writer
from shared.messaging.record import headers_of
from tests.alerts.conftest import activity, contract
from tests.conftest import eventually
from tests.fakes.discord import FakeDiscord
from tests.fakes.posts import Answer, Posts, Request
from tests.fakes.smtp import FakeSmtp, Mail

REPOSITORY = Path(__file__).parents[2]
SUBJECT = re.compile(r"(?<![A-Z0-9])[KN]\d{5}\b")
PACE_S = 0.1
BEHIND = 60
"""So many messages may be on their way before the stream waits for them."""

Told = tuple[str, str, str]
"""(user, channel, subject): what arrives once."""


@dataclass
class Slowly:
    """An app to which a message is on its way for a while, and its answer too: where a kill finds them."""

    chance: Random
    most_s: float

    async def __call__(self, app: Any, scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(self.chance.uniform(0, self.most_s))  # the time that a message is on its way

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                await asyncio.sleep(self.chance.uniform(0, self.most_s))  # the time that its answer is on its way
            await send(message)

        await app(scope, receive, answer)


class SlowDiscord(FakeDiscord):
    """Discord, slowly. While it is `picky`, it refuses what is `odd`."""

    picky = False

    def __init__(self, chance: Random, most_s: float) -> None:
        super().__init__(limit=1_000_000)
        self._slowly = Slowly(chance, most_s)

    def _handle_or_ban(self, scope: Any, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if self.picky and odd(body[:8_000].decode("latin-1")):  # behind lies the picture
            return 400, {"message": "Invalid Form Body", "code": 50035}, {}
        return super()._handle_or_ban(scope, body)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await self._slowly(super()._app, scope, receive, send)


class SlowReceiver(Posts):
    """Receives signed webhooks, slowly."""

    def __init__(self, chance: Random, most_s: float) -> None:
        super().__init__()
        self._slowly = Slowly(chance, most_s)

    def take(self, request: Request) -> Answer:
        return Answer(204)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await self._slowly(super()._app, scope, receive, send)


class SlowSmtp(FakeSmtp):
    """The same for mails."""

    def __init__(self, chance: Random, most_s: float) -> None:
        super().__init__()
        self._chance, self._most_s = chance, most_s

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        answer = await super().handle_DATA(server, session, envelope)
        await asyncio.sleep(self._chance.uniform(0, self._most_s))  # the time that its answer is on its way
        return answer


@dataclass
class Nursery:
    """The parent of the lives."""

    process: asyncio.subprocess.Process
    life: int | None = None

    async def begin(self) -> None:
        """Begin a life."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"live\n")
        await self.process.stdin.drain()
        self.life = int(await self.process.stdout.readline())

    def alive(self) -> bool:
        """Whether there is a life."""
        if self.life is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.life, 0)
            return True
        return False

    async def kill(self) -> None:
        """SIGKILL."""
        assert self.life is not None
        os.kill(self.life, signal.SIGKILL)
        await eventually(lambda: not self.alive())
        self.life = None


@contextlib.asynccontextmanager
async def nursery(env: dict[str, str], log: Path) -> AsyncGenerator[Nursery]:
    """A parent of lives; none is left at the end."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "tests.alerts.nursery"),
            env=env,
            cwd=REPOSITORY,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
        )
    one = Nursery(process)
    try:
        yield one
    finally:
        if one.alive():
            await one.kill()
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


@dataclass
class Person:
    """A user with three channels and a rule that takes everything; what comes to `path` is signed with `secret`."""

    id: UUID
    webhook: str
    email: str
    path: str
    secret: str


@dataclass
class Stage:
    """Everything around the service."""

    lives: Nursery
    admin: asyncpg.Connection
    http: httpx.AsyncClient
    signer: Signer
    writer: Writer
    discord: SlowDiscord
    smtp: SlowSmtp
    receiver: SlowReceiver
    people: list[Person] = field(default_factory=list[Person])
    told: list[Told] = field(default_factory=list[Told])
    unknown: Counter[Told] = field(default_factory=Counter[Told])
    """How often a kill met a message whose outcome nobody knows."""
    kills: int = 0

    # Setting up, while the first life lives

    async def ask(self, who: UUID, method: str, path: str, body: Any = None) -> Any:
        """Ask the service, as the gateway would."""
        token = self.signer.sign(Identity(who, "user"), audience="alerts", request_id="r1")
        answer = await self.http.request(method, path, json=body, headers={HEADER: token})
        assert answer.is_success, answer.text
        return answer.json() if answer.content.startswith(b"{") else None

    async def join(self, preferences: dict[str, Any] | None = None) -> None:
        """Add a user who hears of everything on every channel, or as the preferences say."""
        user, path = uuid4(), f"/hook/{uuid4().hex}"
        target = {"target": self.receiver.base + path}
        made = await self.ask(user, "PUT", f"/api/alerts/{user}/channels/webhook", target)
        who = Person(user, self.discord.webhook(), f"{uuid4().hex}@example.org", path, made["secret"])
        await self.ask(who.id, "POST", f"/api/alerts/{who.id}/rules", {"name": "all", "symbols": [], "min_score": 50})
        await self.ask(who.id, "PUT", f"/api/alerts/{who.id}/channels/discord", {"target": who.webhook})
        await self.ask(who.id, "PUT", f"/api/alerts/{who.id}/channels/email", {"target": who.email})

        def asked() -> list[str]:
            return [str(mail.message.get_body()) for mail in self.smtp.mails if who.email in mail.recipients]

        await eventually(lambda: bool(asked()), 120)
        body = self.smtp.mails[-1].message.get_body(("plain",))
        assert body is not None
        token = body.get_content().partition("token=")[2].split()[0]
        await self.ask(who.id, "POST", f"/links/confirm-email?token={token}")
        if preferences is not None:
            await self.ask(who.id, "PUT", f"/api/alerts/{who.id}/preferences", preferences)
        self.people.append(who)

    # The stream

    async def stream(self, stop: asyncio.Event) -> None:
        """Tell of one activity and one fill after the other, no faster than they are taken."""
        number = 0
        while not stop.is_set():
            number += 1
            now = utc_now()
            seen = activity(contract(score=80.0), symbol=f"K{number:05}", session=now.date(), as_of=now)
            who = self.people[number % len(self.people)]
            fill = OrderFilled(
                id=uuid4(),
                time=now,
                at=now,
                order_id=uuid4(),
                account_id=uuid4(),
                user_id=who.id,
                venue="paper",
                mode="paper",
                fill_id="1",
                symbol=f"N{number:05}",
                side="buy",
                quantity=Decimal(1),
                price=Decimal(100),
                fee=Decimal(0),
                whole=True,
            )
            for event in (seen, fill):
                await self._publish(event)
            for subject, hearers in ((seen.symbol, self.people), (fill.symbol, [who])):
                channels = self._channels_of(subject)
                self.told += [(str(one.id), channel, subject) for one in hearers for channel in channels]
            await asyncio.sleep(PACE_S)  # a stream has a pace
            await eventually(lambda: stop.is_set() or len(self.told) - len(self.arrived()) <= BEHIND, 600)

    def _channels_of(self, subject: str) -> Sequence[str]:
        """Where a message arrives: with a picky Discord, what it refuses by mail and the rest there alone."""
        if not self.discord.picky:
            return "discord", "email", "webhook"
        return ("email" if odd(subject) else "discord", "webhook")

    async def _publish(self, event: Event) -> None:
        headers = [(name.decode(), value) for name, value in headers_of(event, "openbell/test")]
        await (await self.writer.send(event.topic.name, event.to_bytes(), event.key.encode(), headers=headers))

    # What arrived

    def arrived(self) -> Counter[Told]:
        """How often each message came."""
        hooks = {who.webhook: str(who.id) for who in self.people}
        mails = {who.email: str(who.id) for who in self.people}
        found: Counter[Told] = Counter()
        for post in list(self.discord.posts):
            if post.url in hooks:
                found.update((hooks[post.url], "discord", one) for one in subjects_of(str(post.payload)))
        paths = {who.path: str(who.id) for who in self.people}
        for request in list(self.receiver.requests):
            found.update((paths[request.path], "webhook", one) for one in subjects_of(request.body.decode()))
        for mail in list(self.smtp.mails):
            found.update((mails[mail.recipients[0]], "email", one) for one in subjects_of(words_of(mail)))
        return found

    # A life and its end

    async def live_and_die(self, chance: Random) -> None:
        """Begin a life and kill it: somewhere in its start, or somewhere in its work."""
        before = sum(self.arrived().values())
        await self.lives.begin()
        if chance.random() < 0.75:
            await eventually(lambda: sum(self.arrived().values()) > before, 120)
            await asyncio.sleep(chance.uniform(0, 0.5))  # any moment: no condition names where a kill falls
        else:
            await asyncio.sleep(chance.uniform(0, 2))  # the same, in its start
        await self.lives.kill()
        self.kills += 1
        await self.note_the_dead()

    async def note_the_dead(self) -> None:
        """Note what was in flight, and let the time pass that a dead worker's lease takes."""
        rows = await self.admin.fetch(
            """select d.user_id, d.channel, a.title as words from alerts.deliveries d join alerts.alerts a
                using (alert_id, session) where d.status = 'started'
            union all
            select d.user_id, d.channel, n.title || array_to_string(n.lines, ' ')
                from alerts.notice_deliveries d join alerts.notices n
                using (notice_id) where d.status = 'started'"""
        )
        for row in rows:
            place = str(row["user_id"]), row["channel"]
            self.unknown.update((*place, one) for one in subjects_of(row["words"]))
        for table in ("deliveries", "notice_deliveries", "bundles"):
            await self.admin.execute(
                f"""update alerts.{table} set lease_until = now() - interval '1 second'
                where status in ('claimed', 'started')"""
            )

    async def settled(self) -> bool:
        """Whether all that was told has arrived, and every row says so."""
        left = await self.admin.fetchval(
            """select (select count(*) from alerts.deliveries where status <> all ($1))
            + (select count(*) from alerts.notice_deliveries where status <> all ($1))
            + (select count(*) from alerts.bundles where status <> 'done')""",
            ["done", "suppressed", *(["failed"] if self.discord.picky else [])],
        )
        return left == 0 and set(self.told) == set(self.arrived())

    def doubled(self) -> Counter[Told]:
        """What came more than once."""
        return Counter({one: times for one, times in self.arrived().items() if times > 1})


def odd(words: str) -> bool:
    """Whether words are about a subject with an odd number."""
    return any(int(one[1:]) % 2 for one in subjects_of(words))


def subjects_of(words: str) -> set[str]:
    """Return what a message is about."""
    return set(SUBJECT.findall(words))


def words_of(mail: Mail) -> str:
    """Return a mail's subject and its text."""
    body = mail.message.get_body(("plain",))
    assert body is not None
    return f"{mail.message['Subject']} {body.get_content()}"


def environment_of(
    settings: Any, address: KafkaAddress, port: int, discord: SlowDiscord, smtp: SlowSmtp, receiver: SlowReceiver
) -> Any:
    """What the service is started with."""
    return {
        **os.environ,
        "OPENBELL_DATABASE_URL": settings.database_url,
        "OPENBELL_KAFKA_BOOTSTRAP": address.bootstrap,
        "OPENBELL_KAFKA_STATIC_MEMBERS": "true",  # each life takes the dead one's place at once
        "OPENBELL_KAFKA_SMALL_TOPICS": str(address.small_topics),
        "OPENBELL_HTTP_PORT": str(port),
        "OPENBELL_ALERTS_DISCORD_BASE": discord.base,
        "OPENBELL_ALERTS_OUTWARD_BASE": receiver.base,
        "OPENBELL_ALERTS_SMTP_HOST": smtp.host,
        "OPENBELL_ALERTS_SMTP_PORT": str(smtp.port),
        "OPENBELL_ALERTS_SMTP_STARTTLS": "false",
        "OPENBELL_ALERTS_SMTP_CONCURRENCY": "16",
    }
