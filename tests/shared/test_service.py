"""What a service says of itself while something is broken."""

from typing import NoReturn

from shared.service import Environment, Service
from tests.conftest import eventually

SECRET = "password=hunter2"


class Failing:
    name = "worker that fails"

    async def run(self) -> NoReturn:
        raise RuntimeError(f"refused: {SECRET}")


class Unstartable(Service):
    async def start(self) -> NoReturn:
        raise OSError(f"cannot connect: {SECRET}")


async def _detail(service: Service, name: str) -> str:
    async def told() -> bool:
        return name in await service.readiness()

    await eventually(told)
    return (await service.readiness())[name][1]


async def test_readiness_hides_secrets_in_what_a_worker_raises(environment: Environment):
    service = Service("detector", environment)
    service.work(Failing())
    async with service.running():
        assert await _detail(service, Failing.name) == "RuntimeError: refused: password=***"


async def test_readiness_hides_secrets_in_what_stops_the_start(environment: Environment):
    service = Unstartable("detector", environment)
    async with service.running():

        async def tried() -> bool:
            return await _detail(service, "start") != "not started"

        await eventually(tried)
        assert await _detail(service, "start") == "OSError: cannot connect: password=***"
