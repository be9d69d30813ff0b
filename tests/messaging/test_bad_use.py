"""What a developer can do wrong is refused at start-up or at the call, with what to do instead."""

from collections.abc import Sequence
from typing import ClassVar
from uuid import uuid4

import pytest

from shared.clock import utc_now
from shared.contracts.base import Event
from shared.contracts.topics import Topic
from shared.db import Tx
from shared.messaging.consumer import Consumer
from shared.messaging.outbox import Outbox
from shared.service import Environment, Service
from tests.messaging.harness import Deposited, Probe


class Known(Deposited):
    topic: ClassVar[Topic] = Topic("probe.known")


class Unkeyed(Event):
    type: ClassVar[str] = "probe.unkeyed.v1"
    topic: ClassVar[Topic] = Topic("probe.unkeyed")


async def nothing(event: Event, tx: Tx) -> Sequence[Event]:
    return []


def consumer(name: str = "probe.known") -> Consumer:
    made = Consumer(name)
    made.on(Known, nothing)
    return made


def test_two_handlers_for_one_event_are_refused() -> None:
    with pytest.raises(ValueError, match=r"probe\.known already has a handler for probe\.account\.deposited\.v1"):
        consumer().on(Known, nothing)


def test_an_event_without_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Unkeyed has no key of its own; define the property `key`"):
        Consumer("probe.known").on(Unkeyed, nothing)


def test_an_event_that_the_services_card_does_not_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"add Known to READS in services/probe/__init__\.py"):
        Service("probe", Environment()).consume(consumer())


def test_a_consumer_of_another_service_and_a_second_one_of_a_name_are_refused() -> None:
    service = Service("probe", Environment(), (Known,))
    with pytest.raises(ValueError, match=r"must be named probe\.<what>"):
        service.consume(consumer("other.known"))
    service.consume(consumer())
    with pytest.raises(ValueError, match="put both tables into one"):
        service.consume(consumer())


async def test_an_event_published_outside_a_transaction_raises_at_the_call(probe: Probe) -> None:
    event = Known(id=uuid4(), time=utc_now(), account="a", n=1)
    async with probe.db.read() as tx:
        with pytest.raises(RuntimeError, match="return it from a handler, or publish it through the Door"):
            await Outbox("probe", lambda: None).add(tx, [event])
