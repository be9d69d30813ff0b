import asyncio

import pytest

from services.api.coalesce import Coalescer


async def test_keys_asked_together_are_read_together_and_each_once():
    reads: list[list[int]] = []

    async def read(keys: list[int]) -> dict[int, str]:
        reads.append(keys)
        return {key: str(key) for key in keys if key != 3}

    coalescer = Coalescer(read)
    assert await asyncio.gather(*(coalescer.get(key) for key in (1, 2, 1, 3))) == ["1", "2", "1", None]
    assert reads == [[1, 2, 3]]


async def test_while_reads_are_under_way_keys_gather():
    reads: list[list[int]] = []
    gate = asyncio.Event()

    async def read(keys: list[int]) -> dict[int, int]:
        reads.append(keys)
        await gate.wait()
        return {key: key for key in keys}

    coalescer = Coalescer(read)
    tasks = []
    for key in range(10):
        tasks.append(asyncio.create_task(coalescer.get(key)))
        await asyncio.sleep(0)  # no time: a turn of the loop for the caller to ask,
        await asyncio.sleep(0)  # and one for the read that this begins
    assert len(reads) == 2
    gate.set()
    assert await asyncio.gather(*tasks) == list(range(10))
    assert len(reads) == 3


async def test_a_caller_who_leaves_takes_no_answer_from_others_and_errors_reach_all():
    gate = asyncio.Event()

    async def read(keys: list[int]) -> dict[int, int]:
        await gate.wait()
        raise ConnectionError("gone")

    coalescer = Coalescer(read)
    stays, leaves = asyncio.create_task(coalescer.get(1)), asyncio.create_task(coalescer.get(1))
    await asyncio.sleep(0)  # no time: a turn of the loop in which both ask
    leaves.cancel()
    gate.set()
    with pytest.raises(ConnectionError):
        await stays
    assert leaves.cancelled()
