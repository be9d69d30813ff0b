"""Where a user's alerts go besides the app: channels, each with one or more targets.

What would surprise you: setting a channel of one target moves it, setting one of several adds to them; the same
target again changes nothing but that it is enabled.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from services.alerts.domain.channels import (
    MAILS_A_DAY,
    MOST,
    UNCONFIRMED,
    checked_target,
    masked,
    next_mail_in_s,
)
from services.alerts.domain.links import Link, LinkRefused, Links
from services.alerts.domain.mail_events import ENDS, AddressSuppressed
from services.alerts.domain.targets import SECRETS, Webhook, subscription_of, webhook_of
from services.alerts.ports import Check
from services.alerts.service.alerts import Options
from services.alerts.service.audit import Actor, audited
from services.alerts.service.targets import Targets
from services.alerts.store.audience import AudienceStore
from services.alerts.store.confirmations import ConfirmationStore
from services.alerts.store.targets import Kept, Place
from shared.clock import Clock, NewId
from shared.contracts.alerts import Channel
from shared.contracts.api import ActionAudited
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound, RateLimited
from shared.messaging.door import Done


class ChannelNotOffered(Invalid):
    """This channel is not set up on this installation."""

    code = "CHANNEL_NOT_OFFERED"


@dataclass(frozen=True, slots=True)
class ChannelSet:
    """A target as it is now, and the secret that signs what goes there where it is new: shown this once."""

    row: Row = field(repr=False)
    secret: str | None = field(default=None, repr=False)


class Channels:
    """Sets, confirms and removes channels."""

    def __init__(
        self,
        audience: AudienceStore,
        confirmations: ConfirmationStore,
        options: Options,
        targets: Targets,
        *,
        links: Links,
        clock: Clock,
        new_id: NewId,
        new_secret: Callable[[], str],
        checks: Mapping[Channel, Check],
        wake: Callable[[], None],
    ) -> None:
        self._audience = audience
        self._confirmations = confirmations
        self._options = options
        self._targets = targets
        self._links = links
        self._clock = clock
        self._new_id = new_id
        self._new_secret = new_secret
        self._checks = checks
        self._wake = wake

    async def set(self, actor: Actor, user_id: UUID, channel: Channel, target: str | None, tx: Tx) -> Done[ChannelSet]:
        """Set where a channel goes. Without a target, e-mail goes to the address of sign-up.

        A target is enabled at once; an address when its reader opens the link of the mail that goes there now. Raises
        Invalid for a target that is not acceptable, Conflict for one too many, ChannelNotOffered for a channel that is
        not set up, AddressSuppressed for an address that gets no mail any more, RateLimited for too many mails.
        """
        self.offers(channel)
        if target is None and channel == "email":
            target = await self._audience.email(tx, user_id)
        if target is None:
            raise Invalid("a target is needed")
        now, target = self._clock(), self._checked(channel, target)
        await self._refuse_suppressed(channel, target, tx)
        lanes = await self._targets.lanes(tx, channel, target)
        known = await self._place(user_id, channel, lanes, tx)
        place = Place(user_id, channel, lanes[0] if known is None else known["lane"])
        secret = None
        if channel == "webhook":
            target, secret = self._signed(target, known)
        confirmed_at = now if channel != "email" else known["confirmed_at"] if known is not None else None
        reason = None if confirmed_at else known["reason"] if known is not None else UNCONFIRMED
        row = await self._audience.set_channel(
            *(tx, place, await self._targets.kept(tx, place, target)),
            confirmed_at=confirmed_at,
            reason=reason,
            now=now,
        )
        if confirmed_at is None and known is None:
            await self._ask_to_confirm(Link(user_id, place.lane), tx)
        shown = {} if channel == "email" else {"target": masked(channel, target)}
        return Done(ChannelSet(row, secret), [self._audited(actor, "set.channel", f"{user_id}/{channel}", **shown)])

    def _signed(self, target: str, known: Row | None) -> tuple[str, str | None]:
        """Return the webhook that is known, else a new one with its secret."""
        if known is not None:
            return self._targets.open(known), None
        secret = self._new_secret()
        return _signed_by(target, secret), secret

    async def _refuse_suppressed(self, channel: Channel, target: str, tx: Tx) -> None:
        kind = await self._confirmations.suppressed(tx, target) if channel == "email" else None
        if kind is not None:
            raise AddressSuppressed(f"{ENDS[kind]}; an administrator can lift this")

    async def check(self, channel: Channel, target: str | None) -> None:
        """Ask whether a target may be reached, before `set` and outside of its transaction; raises as `set` does."""
        self.offers(channel)
        if target is not None and channel in self._checks:
            await self._checks[channel](self._checked(channel, target))

    def push_key(self) -> str:
        """Return the public key that browsers subscribe with; raises ChannelNotOffered."""
        self.offers("webpush")
        return self._options.push_key or ""

    def offers(self, channel: Channel) -> None:
        """Raise ChannelNotOffered for a channel that is not set up."""
        if channel not in self._options.offered:
            raise ChannelNotOffered(f"{channel} is not set up here")

    def _checked(self, channel: Channel, target: str) -> str:
        base = self._options.discord_base if channel == "discord" else self._options.outward_base
        target = checked_target(channel, target, extra_base=base)
        if channel == "webpush" and subscription_of(target).expired(self._clock()):
            raise Invalid("this push subscription has expired: subscribe again")
        return target

    async def new_secret(self, actor: Actor, user_id: UUID, target_id: str, tx: Tx) -> Done[ChannelSet]:
        """Give a webhook another secret; the one before it signs as well until the next. Raises NotFound."""
        await self._audience.lock_channels(tx, user_id)
        lane = f"webhook/{target_id}"
        known = next((row for row in await self._known(user_id, "webhook", tx) if row["lane"] == lane), None)
        if known is None:
            raise NotFound("there is no such webhook")
        secret, place = self._new_secret(), Place.of(known)
        kept = await self._targets.kept(tx, place, _signed_by(self._targets.open(known), secret))
        row = await self._audience.new_target(tx, place, kept, self._clock())
        audit = self._audited(actor, "rotate.channel", f"{user_id}/{known['lane']}")
        return Done(ChannelSet(row, secret), [audit])

    async def _place(self, user_id: UUID, channel: Channel, lanes: Sequence[str], tx: Tx) -> Row | None:
        """Make room for a target: return what is known of it; else the only one goes, or one too many is refused."""
        await self._audience.lock_channels(tx, user_id)
        known = await self._known(user_id, channel, tx)
        found = next((row for row in known if row["lane"] in lanes), None)
        if found is None and MOST[channel] == 1:
            await self._audience.remove_channel(tx, user_id, channel, None)
        elif found is None and len(known) >= MOST[channel]:
            raise Conflict(f"{MOST[channel]} targets of {channel} are the most a user may have: remove one first")
        return found

    async def ask_again(self, user_id: UUID, channel: Channel, tx: Tx) -> Done[Row]:
        """Send the confirmation mail once more. Raises NotFound, Conflict for a confirmed address, as `set`."""
        known = next(iter(await self._known(user_id, channel, tx)), None)
        if known is None:
            raise NotFound("there is no such channel")
        if known["confirmed_at"] is not None:
            raise Conflict("there is nothing to confirm any more")
        await self._refuse_suppressed(channel, known["target"], tx)
        row = await self._audience.set_channel(
            *(tx, Place.of(known), Kept(known["target"])), confirmed_at=None, reason=UNCONFIRMED, now=self._clock()
        )
        await self._ask_to_confirm(Link(user_id, known["lane"]), tx)
        return Done(row)

    def check_link(self, token: str) -> Link:
        """Return what a signed link stands for; raises LinkRefused."""
        return self._links.read(token, self._clock())

    async def confirm(self, token: str, tx: Tx) -> Done[None]:
        """Enable the channel whose mail was read; again changes nothing. Raises LinkRefused, AddressSuppressed."""
        link = self.check_link(token)
        for row in await self._known(link.user_id, "email", tx):
            if row["lane"] == link.lane and row["confirmed_at"] is None:  # it may have bounced since it was asked
                await self._refuse_suppressed("email", row["target"], tx)
        if await self._confirmations.confirm(tx, link, self._clock()):
            actor = Actor(str(link.user_id))
            return Done(None, [self._audited(actor, "confirm.channel", f"{link.user_id}/email")])
        if not await self._confirmations.confirmed(tx, link):
            raise LinkRefused
        return Done(None)

    async def remove(self, actor: Actor, user_id: UUID, channel: Channel, target_id: str | None, tx: Tx) -> Done[None]:
        """Remove one target of a channel, or the channel with all of them. Raises NotFound."""
        lane = None if target_id is None else f"{channel}/{target_id}"
        if not await self._audience.remove_channel(tx, user_id, channel, lane):
            raise NotFound("there is no such channel")
        return Done(None, [self._audited(actor, "remove.channel", f"{user_id}/{lane or channel}")])

    async def _known(self, user_id: UUID, channel: Channel, tx: Tx) -> list[Row]:
        return [row for row in await self._audience.channels(tx, user_id) if row["channel"] == channel]

    async def _ask_to_confirm(self, link: Link, tx: Tx) -> None:
        now = self._clock()
        sent = await self._confirmations.lately(tx, link, now - timedelta(days=1), MAILS_A_DAY)
        if (wait_s := next_mail_in_s(sent, now)) > 0:
            raise RateLimited("too many confirmation mails to this user or this address", retry_after_s=wait_s)
        await self._confirmations.add(tx, self._new_id(), link, now)
        tx.after_commit(self._wake)

    def _audited(self, actor: Actor, action: str, subject: str, **details: str) -> ActionAudited:
        return audited(actor, action, subject, id=self._new_id(), at=self._clock(), **details)


def _signed_by(target: str, secret: str) -> str:
    """Return a webhook's target with another secret before those that it has."""
    webhook = webhook_of(target)
    return Webhook(webhook.url, (secret, *webhook.secrets)[:SECRETS]).text
