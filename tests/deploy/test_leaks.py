"""Secrets with marked values: where else do they turn up? Nowhere."""

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import psutil
import pytest
from pydantic import SecretStr

from services.alerts.settings import AlertsSettings
from services.api.settings import ApiSettings
from services.broker.settings import BrokerSettings
from services.payment.settings import PaymentSettings
from shared.settings import Settings, SharedSettings
from tests.conftest import eventually

ROOT = Path(__file__).parents[2]
MARK = "leaked"


def _mark(name: str) -> str:
    return f"{MARK}-{name.lower().replace('_', '-')}-0000000000000000000000000"


def _coded(name: str) -> str:
    return base64.b64encode(_mark(name).encode()[:32].ljust(32, b"0")).decode()


SECRETS = {
    "OPENBELL_DATABASE_PASSWORD": _mark("database"),
    "OPENBELL_IDENTITY_SECRET": f"{_mark('identity')},{_mark('identity-before')}",
    "OPENBELL_API_KEY_SECRET": _mark("key-secret"),
    "OPENBELL_API_JWT_SECRET": _mark("jwt"),
    "OPENBELL_API_JWT_SECRET_BEFORE": _mark("jwt-before"),
    "OPENBELL_BROKER_CREDENTIAL_KEYS": f"k1:{_coded('broker')}",
    "OPENBELL_BROKER_CALLBACK_SECRETS": json.dumps({"paper": _mark("callback")}),
    "OPENBELL_BROKER_OAUTH_VENUES": "[]",
    "OPENBELL_PAYMENT_STRIPE_KEY": f"sk_test_{_mark('stripe')}",
    "OPENBELL_PAYMENT_STRIPE_WEBHOOK_SECRETS": f"whsec_{_mark('stripe-webhook')}",
    "OPENBELL_PAYMENT_CRYPTO_URLS": json.dumps({"bitcoin": f"http://127.0.0.1:9/{_mark('node')}"}),
    "OPENBELL_ALERTS_TARGET_KEYS": f"k1:{_coded('targets')}",
    "OPENBELL_ALERTS_SMTP_PASSWORD": _mark("smtp"),
    "OPENBELL_ALERTS_SENDGRID_API_KEY": _mark("sendgrid"),
    "OPENBELL_ALERTS_RESEND_API_KEY": _mark("resend"),
    "OPENBELL_ALERTS_RESEND_WEBHOOK_SECRET": f"whsec_{_coded('resend-webhook')}",
    "OPENBELL_ALERTS_VAPID_PRIVATE_KEY": base64.urlsafe_b64encode(b"leaked-vapid-key-000000000000000")
    .decode()
    .rstrip("="),
}
_PARTS = re.compile(r"[A-Za-z0-9+/=_-]{20,}")
WORDS = sorted({part for value in SECRETS.values() for part in _PARTS.findall(value)})
OTHERS = {
    "OPENBELL_API_JWT_ISSUER": "https://issuer.example",
    "OPENBELL_API_JWT_AUDIENCE": "openbell",
    "OPENBELL_ALERTS_SMTP_HOST": "127.0.0.1",
    "OPENBELL_ALERTS_SMTP_USER": "openbell",
    "OPENBELL_LOG_LEVEL": "DEBUG",
}


def leaks(text: str) -> list[str]:
    """Return the secrets that a text shows."""
    return [word for word in WORDS if word in text]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, value in SECRETS.items():
        (tmp_path / name).write_text(value)
    return tmp_path


class Process:
    """A service with these secrets, and all that it says."""

    def __init__(self, folder: Path, service: str, **settings: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = folder.parent / f"{folder.name}.log"
        given = {**OTHERS, **settings, "OPENBELL_HTTP_PORT": str(self.port)}
        self.env = {**{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}, **given}
        self.command = (sys.executable, "-m", "tests.deploy.leaking", str(folder), service)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[asyncio.subprocess.Process]:
        with self.log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *self.command, env=self.env, cwd=ROOT, stdout=output, stderr=output
            )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    async def answers(self) -> str:
        """Return all that it answers, also to what it does not like, once it is ready."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False) as http:

            async def ready() -> bool:
                with contextlib.suppress(httpx.HTTPError):
                    return (await http.get("/readyz")).status_code == 200
                return False

            await eventually(ready, 90)
            wrong = {"authorization": "Bearer eyJhbGciOiJIUzI1NiJ9.e30.x", "x-openbell-identity": "nobody"}
            found = [
                await http.get("/readyz"),
                await http.get("/metrics"),
                await http.get("/nowhere"),
                await http.get("/ops/failed-jobs", headers=wrong),
                await http.post("/api/users", content=b"{", headers={"content-type": "application/json"}),
                await http.post("/payment/webhooks/stripe", content=b"{}", headers={"stripe-signature": "t=1,v1=x"}),
                await http.post("/alerts/webhooks/resend", content=b"{}", headers={"svix-id": "x"}),
                await http.post("/broker/callbacks/paper", content=b"{}", headers={"webhook-id": "x"}),
            ]
        return "\n".join(f"{one.status_code} {one.headers} {one.text}" for one in found)


def _environments(pid: int) -> str:
    """Return the environment and the command line of a process and all its children."""
    top = psutil.Process(pid)
    every = [top, *top.children(recursive=True)]
    return "\n".join(f"{one.environ()} {one.cmdline()}" for one in every)


@pytest.mark.parametrize("service", ["api", "alerts", "broker", "payment"])
async def test_a_run_shows_no_secret_in_logs_answers_metrics_or_environments(
    folder: Path, settings: SharedSettings, service: str
):
    process = Process(
        folder,
        service,
        OPENBELL_DATABASE_URL=settings.database_url,
        OPENBELL_KAFKA_BOOTSTRAP=settings.kafka_bootstrap,
        OPENBELL_KAFKA_STATIC_MEMBERS=str(settings.kafka_static_members),
        OPENBELL_KAFKA_SMALL_TOPICS=str(settings.kafka_small_topics),
    )
    async with process.running() as running:
        answers = await process.answers()
        environments = _environments(running.pid)
    said = process.log.read_text()
    assert "service_started" in said
    assert "openbell_" in answers
    assert {"answers": leaks(answers), "environments": leaks(environments), "logs": leaks(said)} == {
        "answers": [],
        "environments": [],
        "logs": [],
    }


@pytest.mark.parametrize("service", ["api", "alerts", "broker", "payment"])
async def test_a_process_that_cannot_start_shows_no_secret(folder: Path, service: str):
    process = Process(folder, service, OPENBELL_DATABASE_URL="postgresql://127.0.0.1:9/openbell")
    async with process.running():
        await eventually(lambda: "service_cannot_start" in process.log.read_text())
    assert leaks(process.log.read_text()) == []


@pytest.mark.parametrize(
    ("service", "name"),
    [
        ("api", "OPENBELL_API_JWT_SECRET"),
        ("alerts", "OPENBELL_ALERTS_TARGET_KEYS"),
        ("alerts", "OPENBELL_ALERTS_RESEND_WEBHOOK_SECRET"),
        ("broker", "OPENBELL_BROKER_CREDENTIAL_KEYS"),
        ("broker", "OPENBELL_BROKER_CALLBACK_SECRETS"),
        ("payment", "OPENBELL_PAYMENT_CRYPTO_URLS"),
    ],
)
async def test_a_crash_for_a_secret_that_is_wrong_does_not_show_it(folder: Path, service: str, name: str):
    (folder / name).write_text("leaked-too-short")
    process = Process(folder, service)
    async with process.running() as running, asyncio.timeout(60):
        assert await running.wait() != 0
    said = process.log.read_text()
    assert said.strip(), "it says why"
    assert leaks(said) == []
    assert MARK not in said, "nor a part of one"


@pytest.mark.parametrize("kind", [SharedSettings, ApiSettings, AlertsSettings, BrokerSettings, PaymentSettings])
def test_printed_settings_show_no_secret(kind: type[Settings], monkeypatch: pytest.MonkeyPatch):
    for name, value in (SECRETS | OTHERS).items():
        monkeypatch.setenv(name, value)
    settings = kind()
    assert leaks(f"{settings!r} {settings}") == []
    held = [getattr(settings, name) for name in kind.model_fields]
    assert any(isinstance(one, SecretStr) for one in held), "it holds some"


def test_nothing_goes_into_the_image_but_what_is_named_and_no_secret_is_asked_for():
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*"
    named = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert named == {"pyproject.toml", "requirements.lock", "LICENSE", "services", "shared"}
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.split(" ")[0] in {"ARG", "ENV"}:
            assert not re.search(r"SECRET|PASSWORD|TOKEN|KEY", line), line
    inside = [file for name in ("services", "shared") for file in (ROOT / name).rglob("*") if file.is_file()]
    assert [file for file in inside if file.suffix in {".pem", ".key", ".p12"} or file.name.startswith(".env")] == []
