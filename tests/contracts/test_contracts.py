"""Contracts hold for ever: every version that was published still parses, by the path that the runtime takes."""

import importlib
import json
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime

import shared.contracts
from shared.contracts import topics
from shared.contracts.api import ActionAudited
from shared.contracts.base import Event
from shared.contracts.data import CHAIN_SCHEMA, ChainCollected, ChainHeader
from shared.contracts.topics import TOPICS, Topic
from shared.messaging.consumer import Consumer
from shared.messaging.decode import decode
from shared.messaging.record import Record, headers_of
from shared.schema import SERVICES
from tests.contracts.examples import EXAMPLES
from tests.contracts.golden import FOLDER, meaning, meant, record_of

HEADERS: Final = {"ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "content-type"}


def _leaves(event: type[Event] = Event) -> Iterator[type[Event]]:
    children = [child for child in event.__subclasses__() if child.__module__.startswith(shared.contracts.__name__)]
    if not children and event is not Event:
        yield event
    for child in children:
        yield from _leaves(child)


def _import_contracts() -> tuple[type[Event], ...]:
    for module in pkgutil.iter_modules(shared.contracts.__path__, f"{shared.contracts.__name__}."):
        importlib.import_module(module.name)
    return tuple(_leaves())


EVENTS: Final = _import_contracts()
GOLDEN: Final = sorted(FOLDER.glob("*.json"))


def _handled(record: Record, event: type[Event]) -> Event:
    """Decode as a consumer that handles `event` does, while the inbox remembers its day."""
    consumer = Consumer("contracts.golden")

    async def handler(one: Event, tx: Any) -> list[Event]:
        raise NotImplementedError

    consumer.on(event, handler)
    time = datetime.fromisoformat((record.header(b"ce_time") or b"").decode())
    item = decode(consumer, record, time)
    assert item is not None, f"{event.type} is not the type of the record"
    assert item.failure is None, item.failure
    assert item.event is not None
    return item.event


def _trip(event: Event) -> Event:
    record = Record("there", 0, 0, event.key.encode(), event.to_bytes(), headers_of(event, "/openbell/tests"))
    return _handled(record, type(event))


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_what_was_published_once_still_parses_and_means_the_same(file):
    golden: dict[str, Any] = json.loads(file.read_text())
    by_type = {event.type: event for event in EVENTS}
    assert file.stem == golden["headers"]["ce_type"], "the file is named after its type"
    assert file.stem in by_type, "a version that was published needs its class for as long as records of it exist"
    assert golden["headers"].keys() >= HEADERS

    event = _handled(record_of(golden), by_type[file.stem])

    assert str(event.id) == golden["headers"]["ce_id"]
    assert event.content_type == golden["headers"]["content-type"]
    assert event.key == golden["key"], "another key is another order"
    then = meant(golden)
    assert _without_additions(meaning(event), then) == then, "a field was taken away, renamed, or reads another value"


def _without_additions(now: Any, then: Any) -> Any:
    """Leave out the fields that came later: those have defaults."""
    if isinstance(now, dict) and isinstance(then, dict):
        return {name: _without_additions(now[name], then[name]) for name in then if name in now}
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        return [_without_additions(*pair) for pair in zip(now, then, strict=True)]
    return now


def test_every_event_has_a_golden_file():
    missing = {event.type for event in EVENTS} - {file.stem for file in GOLDEN}
    assert not missing, "add an example, then: python -m tests.contracts.golden"


def test_every_type_is_named_after_its_owner_and_used_once():
    for event in EVENTS:
        assert re.fullmatch(r"[a-z]+\.[a-z][a-z_]*\.[a-z][a-z_]*\.v[1-9][0-9]*", event.type), event.type
        assert event.type.partition(".")[0] == event.topic.owner, event.type
        assert event.__doc__, f"{event.type} says what happened in its docstring"
    again = [kind for kind, times in Counter(event.type for event in EVENTS).items() if times > 1]
    assert not again


def test_every_topic_is_named_after_its_owner_created_and_used():
    stated = {name: topic for name, topic in vars(topics).items() if isinstance(topic, Topic)}
    assert set(stated.values()) == set(TOPICS), "a topic outside TOPICS is never created"
    assert len({topic.name for topic in TOPICS}) == len(TOPICS)
    for topic in TOPICS:
        assert re.fullmatch(r"[a-z]+\.[a-z]+", topic.name), topic.name
        assert topic.owner in SERVICES, f"{topic.name}: there is no service {topic.owner}"
    assert {event.topic for event in EVENTS} == set(TOPICS), "a topic that no event uses"


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.type)
def test_an_event_comes_back_as_it_went(event):
    assert _trip(event) == event


def test_examples_are_complete():
    assert {type(event) for event in EXAMPLES} == set(EVENTS)


# Any values, not just likely ones

_TIMES: Final = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone
_FLOATS: Final = st.floats(allow_nan=False, allow_infinity=False)
_JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
st.register_type_strategy(AwareDatetime, _TIMES)  # pyright: ignore[reportArgumentType] - a class at run time
st.register_type_strategy(float, _FLOATS)
st.register_type_strategy(Decimal, st.decimals(1 - 10**15, 10**15 - 1))  # what an order may name


@st.composite
def _chains(draw: st.DrawFn) -> ChainCollected:
    """Any chain; what the schema requires is there, the rest may be null."""
    kinds: dict[pa.DataType, st.SearchStrategy[Any]] = {
        pa.string(): st.text(max_size=21),
        pa.date32(): st.dates(),
        pa.float64(): _FLOATS,
    }
    row = st.fixed_dictionaries(
        {field.name: kinds[field.type] | st.none() if field.nullable else kinds[field.type] for field in CHAIN_SCHEMA}
    )
    table = pa.Table.from_pylist(draw(st.lists(row, max_size=4)), schema=CHAIN_SCHEMA)
    return ChainCollected(id=draw(st.uuids()), time=draw(_TIMES), header=draw(st.builds(ChainHeader)), contracts=table)


def _any(event: type[Event]) -> st.SearchStrategy[Event]:
    if event is ChainCollected:
        return _chains()
    if event is ActionAudited:
        return st.builds(ActionAudited, details=st.dictionaries(st.text(), _JSON, max_size=3))
    return st.builds(event)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_any_event_comes_back_as_it_went(event):
    @settings(max_examples=25)
    @given(_any(event))
    def comes_back(one: Event) -> None:
        assert _trip(one) == one

    comes_back()


def test_a_chain_without_a_required_column_says_which():
    event = next(one for one in EXAMPLES if isinstance(one, ChainCollected))
    broken = event.model_copy(update={"contracts": event.contracts.drop_columns(["strike"])})
    with pytest.raises(ValueError, match="strike"):
        ChainCollected.from_bytes(broken.to_bytes(), id=event.id, time=event.time)
