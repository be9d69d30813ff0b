"""Wires the alerts service."""

import json
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from services.alerts import READS, consumers
from services.alerts.adapters import apprise, discord, fcm, webhook, webpush
from services.alerts.adapters.apprise import AppriseSender
from services.alerts.adapters.charts.artist import Artist
from services.alerts.adapters.fcm import Fcm, ServiceAccount
from services.alerts.adapters.laid_out import LaidOut
from services.alerts.adapters.resend import Resend
from services.alerts.adapters.sendgrid import SendGrid
from services.alerts.adapters.smtp import Smtp, SmtpServer
from services.alerts.adapters.webhook import WebhookSender, new_secret
from services.alerts.adapters.webpush import Vapid, WebPush
from services.alerts.domain.clicks import Clicks
from services.alerts.domain.links import Links
from services.alerts.domain.mail_events import public_key, secret_key
from services.alerts.domain.unsubscribing import UnsubscribeLinks
from services.alerts.ports import Check, Sender
from services.alerts.routes import alerts as alert_routes
from services.alerts.routes import channels as channel_routes
from services.alerts.routes import charts as chart_routes
from services.alerts.routes import digests as digest_routes
from services.alerts.routes import engagement as engagement_routes
from services.alerts.routes import mail as mail_routes
from services.alerts.routes import notices as notice_routes
from services.alerts.routes import preferences as preference_routes
from services.alerts.routes import rules as rule_routes
from services.alerts.routes import silences as silence_routes
from services.alerts.routes import targets as target_routes
from services.alerts.routes import templates as template_routes
from services.alerts.routes import trials as trial_routes
from services.alerts.service import Alerts, Channels, Engagement, Notices, Options, Preferences, Router, Rules, Silences
from services.alerts.service.bundling import Bundling
from services.alerts.service.digests import Digests
from services.alerts.service.escalating import Escalating
from services.alerts.service.gathering import Gathering
from services.alerts.service.layout import Layout
from services.alerts.service.mail import Mail, WebhookKeys
from services.alerts.service.pictures import Pictures
from services.alerts.service.previews import Payloads, Previews
from services.alerts.service.targets import Targets
from services.alerts.service.templates import Templates
from services.alerts.service.trials import Trials
from services.alerts.settings import AlertsSettings
from services.alerts.store.alerts import AlertsStore
from services.alerts.store.audience import AudienceStore, Defaults
from services.alerts.store.confirmations import ConfirmationStore
from services.alerts.store.deliveries import DeliveryStore
from services.alerts.store.digests import DigestStore
from services.alerts.store.engagement import EngagementStore
from services.alerts.store.escalations import EscalationStore
from services.alerts.store.fanouts import FanOutStore
from services.alerts.store.gathered import GatheredStore
from services.alerts.store.groups import GroupStore
from services.alerts.store.kept import KeptEvents
from services.alerts.store.mail import MailStore
from services.alerts.store.notices import NoticeStore
from services.alerts.store.preferences import PreferenceStore
from services.alerts.store.previews import PreviewStore
from services.alerts.store.quotes import QuoteStore
from services.alerts.store.rules import RuleStore
from services.alerts.store.silences import SilenceStore
from services.alerts.store.targets import TargetStore
from services.alerts.store.templates import TemplateStore
from services.alerts.workers import PAGES_FIRST_S, Confirmation, Delivery, FanOuts, NoticeDelivery, Retention
from shared.clock import Clock, new_id
from shared.contracts.alerts import Channel
from shared.envelope import Envelope, keys_of
from shared.identity import identity_secret
from shared.outward import Outward
from shared.schedule import Job
from shared.service import Environment, Service
from shared.signing import secrets_of
from shared.work import Precedence, Work, Worker

SHOWING: Final = frozenset[Channel]({"discord", "email"})
"""Channels that show pictures."""


PAYLOADS: Final[Payloads] = {
    "discord": discord.payload,
    "webhook": webhook.payload,
    "webpush": lambda message: json.loads(webpush.payload(message)),
    "fcm": fcm.payload,
    "apprise": apprise.payload,
}
"""What is posted for a message; mail has none."""

KEEP_GATHERED: Final = timedelta(days=40)
"""What digests are made of; a week is the longest period, an outage may make it longer."""


def build(env: Environment) -> Service:
    """Build the service; nothing is opened before it starts.

    Raises UnsafeSecret in production for development's keys.
    """
    settings = AlertsSettings()
    service = Service("alerts", env, READS)
    targets = _targets(settings, env, service)
    store = AlertsStore()
    audience = AudienceStore(Defaults(settings.default_min_score, settings.default_min_premium_usd))

    confirmations, notices = ConfirmationStore(), NoticeStore()
    links = Links(identity_secret(env.settings))
    clicks = Clicks(identity_secret(env.settings), settings.public_url, settings.open_page)

    unsubscribing = UnsubscribeLinks(identity_secret(env.settings), settings.public_url)
    templates, layout = _layout(service, unsubscribing)

    pictures = _pictures(settings, service)
    workers: list[Worker] = []
    vapid = _vapid(settings)
    plain, checks = _senders(settings, vapid, service.clock)
    offered: dict[Channel, tuple[Sender, int]] = {
        channel: (LaidOut(sender, partial(layout.dress, channel)), at_once)
        for channel, (sender, at_once) in plain.items()
    }

    def wake() -> None:
        for worker in workers:
            worker.wake()

    def perform(work: Work) -> None:
        workers.append(Worker(work, service.door, service.clock, draw=env.random.random))
        service.work(workers[-1])

    deliveries, preferences, silences = DeliveryStore(), PreferenceStore(), SilenceStore()
    mails, engaged, fanning_out = MailStore(), EngagementStore(), Precedence(PAGES_FIRST_S)
    router = Router(deliveries, tuple(offered), wake=wake)
    for channel, (sender, concurrency) in offered.items():
        service.closes(sender)
        drawn = pictures if channel in SHOWING else None
        perform(
            Delivery(
                *(channel, sender, store, notices, service.door),
                router=router,
                targets=targets,
                clicks=clicks,
                clock=service.clock,
                pictures=drawn,
            ).work(concurrency, fanning_out)
        )
        perform(
            NoticeDelivery(
                *(channel, sender, notices, store, service.door),
                router=router,
                targets=targets,
                clicks=clicks,
                clock=service.clock,
                pictures=drawn,
            ).work()
        )
    if "email" in offered:
        asking = Confirmation(
            offered["email"][0],
            confirmations,
            service.door,
            links=links,
            public_url=settings.public_url,
            clock=service.clock,
        )
        perform(asking.work())

    options = Options(
        best_few=settings.best_few,
        notify_step=settings.notify_step,
        offered=tuple(offered),
        discord_base=settings.discord_base,
        outward_base=settings.outward_base,
        push_key=vapid.public_key if vapid is not None else None,
    )
    kept, fans = KeptEvents(), FanOutStore()
    alerts = Alerts(store, audience, options, router=router, kept=kept, fans=fans, clock=service.clock, wake=wake)
    perform(FanOuts(alerts, fans, service.door, first=fanning_out, wake=wake).work())
    channels = Channels(
        audience,
        confirmations,
        options,
        targets,
        links=links,
        clock=service.clock,
        new_id=new_id,
        new_secret=new_secret,
        checks=checks,
        wake=wake,
    )
    trials = Trials(audience, notices, router, clock=service.clock, new_id=new_id)
    told = Notices(notices, preferences, router=router, clock=service.clock)
    rules = Rules(RuleStore(), kept, told, max_rules=settings.max_rules, clock=service.clock, new_id=new_id)
    digests, gathering, making = _digests(settings, service, notices, router, wake=wake, draw=env.random.random)
    workers += [making, *_later(service, router, notices, draw=env.random.random)]
    for consumer in consumers.tables(alerts, told, rules, pictures=pictures, digests=digests, gathering=gathering):
        service.consume(consumer)
    retention = Retention(
        store,
        confirmations,
        notices,
        service.door,
        alerts_months=settings.keep_alerts_months,
        deliveries_months=settings.keep_deliveries_months,
        contracts_days=settings.keep_contracts_days,
    )
    service.schedule(Job("retention", "20 5 * * *", retention.run))
    service.schedule(Job("kept-events", "25 5 * * *", lambda at: kept.forget(service.door.transaction, at.date())))
    service.schedule(Job("fan-outs", "35 5 * * *", lambda at: fans.forget(service.door.transaction, at)))
    mail = Mail(
        mails,
        preferences,
        _webhook_keys(settings),
        unsubscribing,
        service.door,
        router=router,
        clock=service.clock,
        new_id=new_id,
    )
    service.schedule(Job("mail-events", "40 5 * * *", partial(mails.forget, service.door.transaction)))
    engagement = Engagement(engaged, clicks, service.clock)
    service.serve(
        [
            *alert_routes.handlers(store, service.door),
            *rule_routes.handlers(rules, audience, service.door),
            *channel_routes.handlers(channels, audience, service.door),
            *target_routes.handlers(targets),
            *engagement_routes.handlers(engagement, engaged, service.door),
            *notice_routes.handlers(engagement, notices, service.door),
            *trial_routes.handlers(trials, service.door),
            *preference_routes.handlers(
                Preferences(preferences, clock=service.clock, new_id=new_id, said=digests.note_wishes),
                preferences,
                deliveries,
                service.door,
            ),
            *mail_routes.handlers(mail, mails, service.door),
            *digest_routes.handlers(digests, service.door),
            *template_routes.handlers(templates, Previews(PreviewStore(), layout, clicks, PAYLOADS), service.door),
            *chart_routes.handlers(pictures, store, service.door),
            *silence_routes.handlers(Silences(silences, clock=service.clock, new_id=new_id), silences, service.door),
        ]
    )
    return service


def _targets(settings: AlertsSettings, env: Environment, service: Service) -> Targets:
    """Return what seals and opens targets; what lies readable is sealed as soon as it may be."""
    keys = keys_of("OPENBELL_ALERTS_TARGET_KEYS", settings.target_keys.get_secret_value(), env.settings)
    targets = Targets(
        TargetStore(),
        Envelope(keys, os.urandom),
        service.door,
        clock=service.clock,
        new_id=new_id,
        random_bytes=os.urandom,
    )
    service.schedule(Job("seal-targets", "* * * * *", targets.seal_readable))
    return targets


def _layout(service: Service, links: UnsubscribeLinks) -> tuple[Templates, Layout]:
    """Return the templates, and what lays messages out by them."""
    templates = Templates(TemplateStore(), service.door, clock=service.clock, new_id=new_id)
    return templates, Layout(links, templates, service.clock)


def _vapid(settings: AlertsSettings) -> Vapid | None:
    """Return what signs for browsers; None without a key."""
    key = settings.vapid_private_key
    return None if key is None else Vapid(key.get_secret_value(), settings.vapid_subject)


def _digests(
    settings: AlertsSettings,
    service: Service,
    notices: NoticeStore,
    router: Router,
    *,
    wake: Callable[[], None],
    draw: Callable[[], float],
) -> tuple[Digests, Gathering, Worker]:
    """Return what plans digests and what gathers for them, and the worker that makes them."""
    store, gathered = DigestStore(), GatheredStore()
    door, keep = service.door, timedelta(days=31 * settings.keep_alerts_months)
    digests = Digests(store, notices, router, door, clock=service.clock, wake=wake)

    async def forget(at: datetime) -> None:
        await store.forget(door.transaction, at - keep)
        await gathered.forget(door.transaction, at - KEEP_GATHERED)

    service.schedule(Job("digests", "* * * * *", digests.plan))
    service.schedule(Job("digests-retention", "30 5 * * *", forget))
    making = Worker(digests.work(), door, service.clock, draw=draw)
    service.work(making)
    return digests, Gathering(gathered, service.clock), making


def _later(service: Service, router: Router, notices: NoticeStore, *, draw: Callable[[], float]) -> tuple[Worker, ...]:
    """Return the workers that tell groups, and hand on what nobody acknowledges."""
    door = service.door
    service.schedule(Job("escalations-retention", "45 5 * * *", partial(EscalationStore().forget, door.transaction)))
    service.schedule(Job("groups-retention", "50 5 * * *", partial(GroupStore().forget, door.transaction)))
    works = (Bundling(router, notices).work(), Escalating(router).work())
    workers = tuple(Worker(work, door, service.clock, draw=draw) for work in works)
    for worker in workers:
        service.work(worker)
    return workers


def _pictures(settings: AlertsSettings, service: Service) -> Pictures:
    """Return what draws, or does not when charts are off; old quotes go with old contracts."""
    quotes = QuoteStore()
    keep = timedelta(days=settings.keep_contracts_days)
    service.schedule(
        Job("quotes-retention", "25 5 * * *", lambda at: quotes.forget(service.door.transaction, at - keep))
    )
    if not settings.charts:
        return Pictures(quotes, None, service.door)
    artist = Artist(timeout_s=settings.chart_timeout_s, burst=settings.charts_burst)
    service.closes(artist)
    return Pictures(quotes, artist.draw, service.door)


def _senders(
    settings: AlertsSettings, vapid: Vapid | None, clock: Clock
) -> tuple[dict[Channel, tuple[Sender, int]], dict[Channel, Check]]:
    """Return each channel that is set up, with how many messages go out at once, and what checks targets."""
    senders: dict[Channel, tuple[Sender, int]] = {
        "discord": (
            discord.Discord(
                connections=settings.discord_concurrency, most_invalid=discord.MOST_INVALID // settings.discord_replicas
            ),
            settings.discord_concurrency,
        )
    }
    mail = _mail(settings)
    if mail is not None:
        senders["email"] = (mail, settings.smtp_concurrency)
    at_once = settings.outward_concurrency

    def outward() -> Outward:
        return Outward(allowed=settings.outward_base, connections=at_once, clock=clock)

    webhook = WebhookSender(outward(), clock)
    senders["webhook"] = (webhook, at_once)
    checks: dict[Channel, Check] = {"webhook": webhook.check}
    if vapid is not None:
        push = WebPush(vapid, outward(), clock)
        senders["webpush"], checks["webpush"] = (push, at_once), push.check
    if settings.fcm_service_account is not None:
        account = ServiceAccount.read(settings.fcm_service_account)
        senders["fcm"] = (Fcm(account, connections=at_once, clock=clock), at_once)
    if settings.apprise:
        others = AppriseSender(settings.apprise_hosts)
        senders["apprise"], checks["apprise"] = (others, 4), others.check
    return senders, checks


def _mail(settings: AlertsSettings) -> Sender | None:
    """Return what sends mail; None when it is not set up."""
    connections = settings.smtp_concurrency
    if settings.email_via == "sendgrid":
        key, base = settings.sendgrid_api_key, settings.sendgrid_base
        made = SendGrid(key.get_secret_value(), settings.smtp_from, base=base, connections=connections) if key else None
    elif settings.email_via == "resend":
        key, base = settings.resend_api_key, settings.resend_base
        made = Resend(key.get_secret_value(), settings.smtp_from, base=base, connections=connections) if key else None
    else:
        made = _smtp(settings)
    return made


def _webhook_keys(settings: AlertsSettings) -> WebhookKeys:
    sendgrid, resend = settings.sendgrid_webhook_key, settings.resend_webhook_secret
    return WebhookKeys(
        public_key(sendgrid) if sendgrid is not None else None,
        tuple(map(secret_key, secrets_of(resend.get_secret_value()))) if resend is not None else (),
    )


def _smtp(settings: AlertsSettings) -> Sender | None:
    if settings.smtp_host is None:
        return None
    return Smtp(
        SmtpServer(
            host=settings.smtp_host,
            port=settings.smtp_port,
            sender=settings.smtp_from,
            user=settings.smtp_user,
            password=settings.smtp_password.get_secret_value() if settings.smtp_password else None,
            starttls=settings.smtp_starttls,
        )
    )
