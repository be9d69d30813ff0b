"""Use cases of alerts: what users are alerted of, what they are told besides, and where it goes."""

from services.alerts.service.alerts import Alerts, Options
from services.alerts.service.audit import Actor
from services.alerts.service.channels import ChannelNotOffered, Channels, ChannelSet
from services.alerts.service.engagement import Engagement
from services.alerts.service.notices import Notices
from services.alerts.service.preferences import Preferences, Said
from services.alerts.service.routing import NoticeRing, Router
from services.alerts.service.rules import Example, NewRule, Rules, Trial
from services.alerts.service.silences import NewSilence, Silences

__all__ = [
    "Actor",
    "Alerts",
    "ChannelNotOffered",
    "ChannelSet",
    "Channels",
    "Engagement",
    "Example",
    "NewRule",
    "NewSilence",
    "NoticeRing",
    "Notices",
    "Options",
    "Preferences",
    "Router",
    "Rules",
    "Said",
    "Silences",
    "Trial",
]
