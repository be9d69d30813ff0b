import asyncio
from datetime import timedelta
from typing import Any

import httpx

from services.api.domain import MAX_WATCHED
from services.api.main import Gateway
from services.api.service import By, Watchlists
from shared.clock import new_id
from shared.contracts.alerts import AlertRaised
from tests.api.conftest import Person, problem, rows
from tests.conftest import ManualClock, eventually


async def test_a_stock_added_again_has_its_settings_back(client: httpx.AsyncClient, ada: Person):
    path = f"/api/watchlist/{ada.id}"
    added = await client.post(path, json={"ticker": " brk.b"}, headers=ada.headers)
    assert added.json() == {"symbol": "BRK.B", "added": True}
    await client.patch(f"{path}/BRK.B", json={"alerts_enabled": False, "note": "Omaha"}, headers=ada.headers)
    assert (await client.delete(f"{path}/brk.b", headers=ada.headers)).status_code == 204
    assert (await client.get(path, headers=ada.headers)).json() == {"stocks": []}
    assert (await client.patch(f"{path}/BRK.B", json={"note": "x"}, headers=ada.headers)).status_code == 404
    await client.post(path, json={"ticker": "BRK.B"}, headers=ada.headers)
    (stock,) = (await client.get(path, headers=ada.headers)).json()["stocks"]
    assert (stock["alerts_enabled"], stock["note"]) == (False, "Omaha")


async def test_the_history_of_a_stocks_settings_outlives_its_removal(
    client: httpx.AsyncClient, ada: Person, clock: ManualClock
):
    path = f"/api/watchlist/{ada.id}"

    async def history(query: str = "") -> list[dict[str, Any]]:
        answer = await client.get(f"{path}/AAPL/history{query}", headers=ada.headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["history"]

    def at(seconds: int) -> str:
        return (began + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")

    began = clock()
    await client.post(path, json={"ticker": "AAPL"}, headers=ada.headers)
    clock.advance(10)
    await client.patch(f"{path}/AAPL", json={"alerts_enabled": False, "note": "too loud"}, headers=ada.headers)
    await client.patch(f"{path}/AAPL", json={"note": "too loud"}, headers=ada.headers)
    await client.post(path, json={"ticker": "AAPL"}, headers=ada.headers)
    clock.advance(10)
    await client.delete(f"{path}/AAPL", headers=ada.headers)
    removed = await history()
    clock.advance(10)
    await client.post(path, json={"ticker": "AAPL"}, headers=ada.headers)
    again = await history()

    told = [(one["alerts_enabled"], one["note"], one["from_at"], one["until_at"]) for one in again]
    assert told == [
        (False, "too loud", at(30), None),
        (False, "too loud", at(10), at(20)),
        (True, "", at(0), at(10)),
    ]
    assert removed == again[1:]
    page = await client.get(f"{path}/AAPL/history?limit=2", headers=ada.headers)
    assert page.json()["history"] == again[:2]
    assert await history(f"?limit=2&before={page.json()['next']}") == again[2:]
    assert (await client.get(f"{path}/MSFT/history", headers=ada.headers)).status_code == 404


async def test_a_removal_during_a_change_leaves_no_settings_open(
    gateway: Gateway, client: httpx.AsyncClient, ada: Person, clock: ManualClock
):
    path = f"/api/watchlist/{ada.id}"
    await client.post(path, json={"ticker": "AAPL"}, headers=ada.headers)

    async def waits() -> bool:
        return bool(await rows(gateway, "select 1 from pg_stat_activity where wait_event_type = 'Lock'"))

    async with gateway.door.transaction() as tx:
        await Watchlists().change(tx, By("system", clock(), new_id), ada.id, "AAPL", {"note": "late"})
        removal = asyncio.create_task(client.delete(f"{path}/AAPL", headers=ada.headers))
        await eventually(waits)
    assert (await removal).status_code == 204
    assert await rows(gateway, "select 1 from stock_settings_history where until_at is null") == []


async def test_adding_a_watched_stock_changes_and_tells_nothing(
    gateway: Gateway, client: httpx.AsyncClient, ada: Person
):
    path = f"/api/watchlist/{ada.id}"
    await client.post(path, json={"ticker": "AAPL"}, headers=ada.headers)
    before = await rows(gateway, "select count(*) from outbox")
    again = await client.post(path, json={"ticker": "AAPL"}, headers=ada.headers)
    assert again.status_code == 201
    assert again.json() == {"symbol": "AAPL", "added": False}
    assert await rows(gateway, "select count(*) from outbox") == before


async def test_removing_what_is_not_watched_is_not_found(client: httpx.AsyncClient, ada: Person):
    answer = await client.delete(f"/api/watchlist/{ada.id}/AAPL", headers=ada.headers)
    assert answer.status_code == 404
    assert problem(answer)["code"] == "NOT_FOUND"


async def test_a_full_watchlist_takes_no_more(client: httpx.AsyncClient, ada: Person):
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    names = [f"{a}{b}" for a in letters for b in letters][:MAX_WATCHED]
    body = {"investing_style": "trader", "tickers": names}
    assert (await client.post(f"/api/user/{ada.id}/onboarding", json=body, headers=ada.headers)).status_code == 200
    more = await client.post(f"/api/watchlist/{ada.id}", json={"ticker": "ZZZZ"}, headers=ada.headers)
    assert more.status_code == 409
    listed = await client.get(f"/api/watchlist/{ada.id}", headers=ada.headers)
    assert len(listed.json()["stocks"]) == MAX_WATCHED


async def test_a_list_of_nobody_takes_no_stock(client: httpx.AsyncClient, admin: Person):
    answer = await client.post(f"/api/watchlist/{new_id()}", json={"ticker": "AAPL"}, headers=admin.headers)
    assert answer.status_code == 404


async def test_the_list_shows_when_a_stock_last_alerted(
    gateway: Gateway, client: httpx.AsyncClient, ada: Person, clock: ManualClock
):
    path = f"/api/watchlist/{ada.id}"
    await client.post(path, json={"ticker": "AAPL"}, headers=ada.headers)
    later, earlier = alert(ada, clock), alert(ada, clock).model_copy(update={"as_of": clock().replace(hour=9)})
    async with gateway.door.transaction() as tx:
        await Watchlists().record_alerts([later, earlier], tx)
        await Watchlists().record_alerts([earlier], tx)
    (stock,) = (await client.get(path, headers=ada.headers)).json()["stocks"]
    assert stock["last_alert_at"] == clock().isoformat().replace("+00:00", "Z")


def alert(person: Person, clock: ManualClock) -> AlertRaised:
    return AlertRaised(
        id=new_id(),
        time=clock(),
        alert_id=new_id(),
        user_id=person.id,
        rule_id=new_id(),
        symbol="AAPL",
        session=clock().date(),
        as_of=clock(),
        title="AAPL",
        top_score=80,
        contract_count=1,
        premium_usd=1,  # pyright: ignore[reportArgumentType]
        simulated=True,
        notified=True,
    )
