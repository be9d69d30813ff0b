import httpx

from services.api.main import Gateway
from services.api.service import AuditLog
from shared.clock import new_id
from shared.contracts.api import ActionAudited
from tests.api.conftest import Person


async def test_the_log_is_read_page_by_page_latest_first(
    gateway: Gateway, client: httpx.AsyncClient, admin: Person, clock
):
    events = []
    for number in range(7):
        clock.advance(number % 2)  # two of a time
        events.append(
            ActionAudited(
                id=new_id(),
                time=clock(),
                service="payment",
                actor=f"user-{number % 2}",
                action="refund.payment",
                subject=f"payment/{number}",
                at=clock(),
                details={"number": number},
            )
        )
    async with gateway.door.transaction() as tx:
        await AuditLog().record(events, tx)
        await AuditLog().record(events, tx)  # a redelivery is no second line
    seen, place = [], None
    while True:
        query = {"limit": 3} | ({"before": place} if place else {})
        page = (await client.get("/api/audit", params=query, headers=admin.headers)).json()
        seen += [entry["subject"] for entry in page["entries"]]
        place = page["next"]
        if place is None:
            break
    assert seen == [f"payment/{number}" for number in reversed(range(7))]
    chosen = await client.get("/api/audit", params={"actor": "user-1"}, headers=admin.headers)
    assert len(chosen.json()["entries"]) == 3
