"""How each service is deployed: what it may use, how far it is spread, and whom it talks to.

This is the one list. A new service is one line here (and what CONTRIBUTING.md says of code): its manifests, its Kafka
user and its way through the network follow from it, from its card and from its consumers.

What would surprise you: memory and processor are those of docs/deploy.md, which says how they were measured.
"""

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from shared.contracts.api import ActionAudited
from shared.contracts.base import Event
from shared.contracts.topics import ACTIVITY, BROKER_COMMANDS, CHAINS, TOPICS, WEBHOOKS, Topic, dead_letter_topic
from shared.service import Environment, Service

PORT: Final = 8080
"""Where every service answers in its container."""
HTTPS: Final = 443
MAIL: Final = (25, 465, 587)


@dataclass(frozen=True, slots=True)
class Lag:
    """A replica more for each `records` that the consumer is behind, but never more than the topic has partitions."""

    consumer: str
    topic: Topic
    records: int


@dataclass(frozen=True, slots=True)
class Busy:
    """A replica more when they use more than `percent` of the processor time they asked for."""

    percent: int


@dataclass(frozen=True, slots=True)
class Deployed:
    """One service on a cluster. `cpu_m` is in thousandths of a core, memory in MiB."""

    name: str
    cpu_m: int
    memory_mib: int
    memory_limit_mib: int
    grows: Lag | Busy | None = None
    least: int = 2
    most: int = 2
    outside: Sequence[int] = ()
    """Ports of the internet that it needs."""
    why_one: str = ""
    """Why it does not run twice, where it does not."""

    @property
    def address(self) -> str:
        """Where the gateway finds it."""
        return f"http://{self.name}:{PORT}"


SERVICES: Final = (
    Deployed("api", 250, 192, 512, Busy(70), most=10),
    Deployed("alerts", 250, 320, 768, Lag("alerts.activity", ACTIVITY, 2000), most=8, outside=(HTTPS, *MAIL)),
    Deployed("broker", 200, 256, 768, Lag("broker.commands", BROKER_COMMANDS, 200), most=4, outside=(HTTPS,)),
    Deployed(
        *("data", 200, 256, 512), least=1, most=1, outside=(HTTPS,), why_one="each replica would ask the exchange again"
    ),
    Deployed("detector", 250, 256, 768, Lag("detector.chains", CHAINS, 200), most=8),
    Deployed("payment", 150, 192, 512, Lag("payment.webhooks", WEBHOOKS, 500), most=4, outside=(HTTPS,)),
)
GATEWAY: Final = SERVICES[0]


@cache
def _built(name: str) -> Service:
    built: Service = importlib.import_module(f"services.{name}.main").build(Environment())
    return built


def consumers(name: str) -> list[str]:
    """Return the names of a service's consumers, which are its Kafka groups."""
    return sorted(consumer.name for consumer in _built(name).consumers)


def reads(name: str) -> list[Topic]:
    """Return the topics that a service's consumers read."""
    routes = [route for consumer in _built(name).consumers for route in consumer.routes.values()]
    return _topics(route.event for route in routes)


def writes(name: str) -> list[Topic]:
    """Return the topics that a service writes to, those of what it gives up on included."""
    told: Sequence[type[Event]] = importlib.import_module(f"services.{name}").PUBLISHES
    return _topics((*told, ActionAudited)) + [dead_letter_topic(one) for one in consumers(name)]


def topics() -> list[Topic]:
    """Return every topic there is."""
    return [*TOPICS, *(dead_letter_topic(one) for service in SERVICES for one in consumers(service.name))]


def _topics(events: Iterable[type[Event]]) -> list[Topic]:
    return sorted({event.topic for event in events}, key=lambda topic: topic.name)
