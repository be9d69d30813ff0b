"""Who may do what: every route against every kind of caller, and only one's own rows."""

import base64
import hmac
import time
from collections.abc import Callable

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from services.api import store
from services.api.adapters.tokens import IssuedTokens, PublishedKeys
from services.api.main import Gateway
from services.api.settings import ApiSettings
from shared.clock import new_id
from shared.errors import Transient, Unauthenticated
from shared.http import Caller, routes
from shared.identity import Identity, Signer, UnsafeSecret
from tests.api.conftest import Person, client_of, problem, rows

JWT_SECRET = "a-shared-secret-of-some-issuer-0000000000"
ISSUER, AUDIENCE = "https://issuer.example", "openbell"


def concrete(path: str, person: Person) -> str:
    values = {
        "user_id": str(person.id),
        "key_id": str(new_id()),
        "job_id": str(new_id()),
        "run_id": str(new_id()),
        "symbol": "AAPL",
        "service": "api",
        "job": "x",
        "rest": "x",
        "path": "x",
    }
    return path.format(**values)


async def test_every_route_asks_for_its_kind_of_caller(gateway: Gateway, client: httpx.AsyncClient, ada: Person):
    asked = 0
    for method, path, handler in routes(gateway.app):
        if method == "*":  # a WebSocket: test_realtime.py
            continue
        caller = handler.opt["caller"]
        url = concrete(path, ada)
        if caller in {Caller.PUBLIC, Caller.LINK, Caller.PROVIDER}:  # a signature is for the owner to check
            answer = await client.request(method, url)
            assert answer.status_code not in {401, 403}, url
            continue
        if caller is Caller.OPERATOR:
            answer = await client.request(method, url, headers=ada.headers)
            assert answer.status_code == 403, url
            continue
        asked += 1
        nobody = await client.request(method, url)
        assert nobody.status_code == 401, (method, url)
        assert nobody.headers["www-authenticate"] == "Bearer"
        assert problem(nobody)["code"] == "UNAUTHENTICATED"
        wrong = await client.request(method, url, headers={"x-api-key": ada.key[:-1] + "_"})
        assert wrong.status_code in {401, 429}, (method, url)
        if caller is Caller.ADMIN:
            user = await client.request(method, url, headers=ada.headers)
            assert user.status_code == 403, (method, url)
    assert asked > 30


async def test_a_user_reaches_no_row_of_another(gateway: Gateway, client: httpx.AsyncClient, ada: Person, bob: Person):
    bodies = {
        "/api/user/{user_id}/onboarding": {"investing_style": "value"},
        "/api/user/{user_id}/settings": {"min_score": 1},
        "/api/user/{user_id}/keys": {"name": "x"},
        "/api/watchlist/{user_id}": {"ticker": "AAPL"},
        "/api/watchlist/{user_id}/{symbol}": {"note": "x"},
    }
    before = await rows(gateway, "select count(*) from outbox")
    tried = 0
    for method, path, _ in routes(gateway.app):
        if "{user_id}" not in path:
            continue
        body = bodies.get(path) if method in {"POST", "PATCH"} else None
        answer = await client.request(method, concrete(path, bob), json=body, headers=ada.headers)
        assert answer.status_code == 403, (method, path, answer.text)
        tried += 1
    assert tried >= 10
    assert await rows(gateway, "select count(*) from outbox") == before


async def test_an_admin_reaches_the_rows_of_others(client: httpx.AsyncClient, admin: Person, ada: Person):
    assert (await client.get(f"/api/user/{ada.id}/settings", headers=admin.headers)).status_code == 200


async def test_two_credentials_are_one_too_many(client: httpx.AsyncClient, ada: Person, bob: Person):
    path = f"/api/user/{ada.id}/settings"
    for headers in (
        [("x-api-key", ada.key), ("authorization", f"Bearer {bob.key}")],
        [("x-api-key", ada.key), ("x-api-key", bob.key)],
    ):
        assert (await client.get(path, headers=headers)).status_code == 401


@pytest.mark.parametrize(
    "credential", ["", "Basic abc", "Bearer", "Bearer ob_", "Bearer x.y.z", "Bearer " + "a" * 9000]
)
async def test_a_malformed_credential_is_nobody(client: httpx.AsyncClient, ada: Person, credential: str):
    answer = await client.get(f"/api/user/{ada.id}/settings", headers={"authorization": credential})
    assert answer.status_code == 401


async def test_an_identity_that_a_client_sends_means_nothing(gateway: Gateway, client: httpx.AsyncClient, ada: Person):
    for secret in ("development-only-identity-secret-0000", "a-secret-of-somebody-else-000000000000"):
        token = Signer(secret, gateway.clock).sign(Identity(ada.id, "admin"), audience="api", request_id="x")
        answer = await client.get("/api/audit", headers={"x-openbell-identity": token})
        assert answer.status_code == 401
        answer = await client.get("/api/audit", headers={"x-openbell-identity": token, **ada.headers})
        assert answer.status_code == 403


@pytest.fixture
def jwt_gateway(make_gateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    monkeypatch.setenv("OPENBELL_API_JWT_SECRET", JWT_SECRET)
    monkeypatch.setenv("OPENBELL_API_JWT_ISSUER", ISSUER)
    monkeypatch.setenv("OPENBELL_API_JWT_AUDIENCE", AUDIENCE)
    return make_gateway()


def token(gateway: Gateway, subject: str, *, header: dict | None = None, key: object = None, **claims: object) -> str:
    now = int(gateway.clock().timestamp())
    body = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "exp": now + 300, **claims}
    chosen = {"alg": "HS256", **(header or {})}
    return jwt.encode(
        chosen,
        {name: value for name, value in body.items() if value is not None},
        key or OctKey.import_key(JWT_SECRET),  # pyright: ignore[reportArgumentType]
        algorithms=[chosen["alg"]],
    )


async def test_a_token_of_the_trusted_issuer_means_its_user(jwt_gateway: Gateway, join):
    by_id, by_subject = await join("a@example.com"), await join("b@example.com", external_id="auth0|7")
    async with client_of(jwt_gateway.app) as client:
        for person, sub, status in ((by_id, str(by_id.id), 401), (by_subject, "auth0|7", 200)):
            headers = {"authorization": f"Bearer {token(jwt_gateway, sub)}"}
            answer = await client.get(f"/api/user/{person.id}/settings", headers=headers)
            assert answer.status_code == status, answer.text
        assert (await client.get(f"/api/user/{by_id.id}/settings", headers=headers)).status_code == 403


async def test_a_token_that_is_not_quite_right_means_nobody(jwt_gateway: Gateway, join):
    person = await join("a@example.com", external_id="auth0|7")
    sub, now = "auth0|7", int(jwt_gateway.clock().timestamp())
    private = RSAKey.generate_key(2048, auto_kid=True)
    other = OctKey.import_key("a-secret-of-somebody-else-000000000000")
    none = "eyJhbGciOiJub25lIn0." + token(jwt_gateway, sub).split(".")[1] + "."
    wrong = [
        token(jwt_gateway, sub, iss="https://evil.example"),
        token(jwt_gateway, sub, aud="somebody-else"),
        token(jwt_gateway, sub, aud=None),
        token(jwt_gateway, sub, exp=now),
        token(jwt_gateway, sub, exp=None),
        token(jwt_gateway, sub, exp="9999999999"),
        token(jwt_gateway, sub, nbf=now + 600),
        token(jwt_gateway, sub, sub=None),
        token(jwt_gateway, "auth0|unknown"),
        token(jwt_gateway, sub, key=other),
        token(jwt_gateway, sub, header={"alg": "HS512"}),
        token(jwt_gateway, sub, header={"alg": "RS256"}, key=private),
        none,
        token(jwt_gateway, sub) + "x",
    ]
    async with client_of(jwt_gateway.app) as client:
        for one in wrong:
            answer = await client.get(f"/api/user/{person.id}/settings", headers={"authorization": f"Bearer {one}"})
            assert answer.status_code == 401, one


async def test_a_good_token_ends_when_it_says(jwt_gateway: Gateway, join, clock):
    person = await join("a@example.com", external_id="auth0|7")
    headers = {"authorization": f"Bearer {token(jwt_gateway, 'auth0|7')}"}
    async with client_of(jwt_gateway.app) as client:
        assert (await client.get(f"/api/user/{person.id}/settings", headers=headers)).status_code == 200
        clock.advance(301)
        assert (await client.get(f"/api/user/{person.id}/settings", headers=headers)).status_code == 401


async def test_signing_up_with_a_token_is_to_be_known_by_it(jwt_gateway: Gateway):
    headers = {"authorization": f"Bearer {token(jwt_gateway, 'auth0|9')}"}
    async with client_of(jwt_gateway.app) as client:
        answer = await client.post("/api/users", json={"email": "n@example.com"}, headers=headers)
        assert answer.status_code == 201
        user_id = answer.json()["user"]["id"]
        assert (await client.get(f"/api/user/{user_id}/settings", headers=headers)).status_code == 200


class Issuer:
    """Publishes keys, counts how often it is asked."""

    def __init__(self) -> None:
        self.keys: list[dict] = []
        self.asked = 0
        self.down = False

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        return httpx.Response(500) if self.down else httpx.Response(200, json={"keys": self.keys})


async def test_the_secret_before_is_accepted_while_an_issuer_changes_over(gateway: Gateway, clock):
    old, new, other = ("o" * 32, "n" * 32, "x" * 32)
    tokens = IssuedTokens(issuer=ISSUER, audience=AUDIENCE, secrets=[new, old], published=None, clock=clock)
    for secret in (old, new):
        assert (await tokens.verify(token(gateway, "s", key=OctKey.import_key(secret)))).name == "s"
    with pytest.raises(Unauthenticated):
        await tokens.verify(token(gateway, "s", key=OctKey.import_key(other)))


async def test_published_keys_rotate_and_never_serve_as_a_secret(join, clock, gateway: Gateway):
    issuer = Issuer()
    client = httpx.AsyncClient(transport=httpx.MockTransport(issuer))
    published = PublishedKeys(client, "https://issuer.example/jwks", clock)
    tokens = IssuedTokens(issuer=ISSUER, audience=AUDIENCE, published=published, clock=clock)
    rsa, ec = RSAKey.generate_key(2048, {"kid": "one"}), ECKey.generate_key("P-256", {"kid": "two"})

    def signed(key: RSAKey | ECKey, alg: str) -> str:
        return token(gateway, "s", header={"alg": alg, "kid": key.kid}, key=key)

    issuer.down = True
    with pytest.raises(Transient):
        await tokens.verify(signed(rsa, "RS256"))
    issuer.down = False
    issuer.keys = [rsa.as_dict(private=False)]
    clock.advance(31)
    assert (await tokens.verify(signed(rsa, "RS256"))).name == "s"
    with pytest.raises(Unauthenticated):
        await tokens.verify(signed(ec, "ES256"))
    issuer.keys.append(ec.as_dict(private=False))
    clock.advance(31)
    assert (await tokens.verify(signed(ec, "ES256"))).name == "s"
    asked = issuer.asked
    unknown = signed(ECKey.generate_key("P-256", {"kid": "unknown"}), "ES256")
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            await tokens.verify(unknown)
    assert issuer.asked <= asked + 1
    # the published key's own text as an HMAC secret: the classic confusion
    header, body, _ = token(gateway, "s", header={"alg": "HS256", "kid": "one"}).split(".")
    mac = hmac.digest(rsa.as_pem(private=False), f"{header}.{body}".encode(), "sha256")
    forged = f"{header}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    with pytest.raises(Unauthenticated):
        await tokens.verify(forged)
    issuer.keys.append({"kty": "oct", "kid": "three", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"})
    clock.advance(400)
    await tokens.verify(signed(rsa, "RS256"))
    oct_key = OctKey.import_key(issuer.keys[-1])
    with pytest.raises(Unauthenticated):
        await tokens.verify(token(gateway, "s", header={"alg": "HS256", "kid": "three"}, key=oct_key))
    await client.aclose()


def test_jwt_without_issuer_or_with_a_short_secret_is_a_mistake(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENBELL_API_JWT_SECRET", JWT_SECRET)
    with pytest.raises(ValueError, match="ISSUER"):
        ApiSettings()
    monkeypatch.setenv("OPENBELL_API_JWT_ISSUER", ISSUER)
    monkeypatch.setenv("OPENBELL_API_JWT_AUDIENCE", AUDIENCE)
    monkeypatch.setenv("OPENBELL_API_JWT_SECRET", "short")
    with pytest.raises(ValueError, match="32 bytes"):
        ApiSettings()


async def test_remembering_a_key_costs_no_query(gateway: Gateway, client: httpx.AsyncClient, ada: Person, monkeypatch):
    path = f"/api/user/{ada.id}/keys"
    await client.get(path, headers=ada.headers)

    async def never(*_: object) -> None:
        raise AssertionError("the key was looked up again")

    monkeypatch.setattr(store, "key", never)
    started = time.perf_counter()
    assert (await client.get(path, headers=ada.headers)).status_code == 200
    assert time.perf_counter() - started < 5


def test_a_gateway_that_strangers_can_reach_needs_a_key_secret_of_its_own(make_gateway: Callable[..., Gateway]):
    secret = "a-secret-of-our-own-00000000000000"
    with pytest.raises(UnsafeSecret, match=r"^set OPENBELL_API_KEY_SECRET .* OPENBELL_HTTP_HOST is '0\.0\.0\.0'"):
        make_gateway(http_host="0.0.0.0", identity_secret=secret)  # noqa: S104 - refused
