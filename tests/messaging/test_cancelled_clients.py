"""A Kafka client that is cancelled while a broker keeps it waiting leaves no connection open."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from shared.messaging.kafka import KafkaAddress, ensure_topics

Start = Callable[[KafkaAddress], Awaitable[None]]


async def _reader(address: KafkaAddress) -> None:
    reader = address.reader("test.cancelled", "a")
    try:
        await reader.start()
    finally:
        await reader.stop()


async def _writer(address: KafkaAddress) -> None:
    writer = address.writer("test.cancelled")
    try:
        await writer.start()
    finally:
        await writer.give_up()


async def _topics(address: KafkaAddress) -> None:
    await ensure_topics(address, [])


class Silent:
    """A broker that says which versions it speaks, and then nothing."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.bootstrap = ""
        self.asked, self.left = asyncio.Event(), asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.upstream.rpartition(":")
        answers, questions = await asyncio.open_connection(host, int(port))
        questions.write(await _frame(reader))
        writer.write(await _frame(answers))
        questions.close()
        await _frame(reader)
        self.asked.set()
        await reader.read()  # to its end
        self.left.set()
        writer.close()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(int.from_bytes(size, "big"))


@pytest.fixture
async def silent(address: KafkaAddress) -> AsyncGenerator[Silent]:
    broker = Silent(address.bootstrap)
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    broker.bootstrap = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield broker
    server.close()


@pytest.mark.parametrize("start", [_reader, _writer, _topics])
async def test_a_client_that_is_cancelled_while_it_connects_closes_its_connection(silent: Silent, start: Start) -> None:
    starting = asyncio.ensure_future(start(KafkaAddress(silent.bootstrap)))
    async with asyncio.timeout(30):
        await silent.asked.wait()
        starting.cancel()
        await asyncio.wait((starting,))
        assert starting.cancelled()
        await silent.left.wait()


async def test_a_reader_whose_stop_is_cut_short_closes_its_connections(address: KafkaAddress) -> None:
    reader = address.reader("test.cut", "a")
    await reader.start()
    await reader.cluster_id()
    connections = list(reader._client._conns.values())
    assert any(one.connected() for one in connections)
    stopping = asyncio.ensure_future(reader.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait((stopping,))
    assert not any(one.connected() for one in connections)
