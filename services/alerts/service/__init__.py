"""Use cases of alerts: what users are alerted of, and what they are told besides."""

from services.alerts.service.alerts import Actor, Alerts, ChannelNotOffered, NewRule, Options
from services.alerts.service.notices import Notices

__all__ = ["Actor", "Alerts", "ChannelNotOffered", "NewRule", "Notices", "Options"]
