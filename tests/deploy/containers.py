"""`make test-image`: runs every service from the image, as it is deployed, until somebody is alerted.

Containers are read-only, without rights, as nobody, with their secrets as files. Postgres and Kafka are those of
`make run` (deploy/local), so that no registry is needed but for the image's own base. An engine on Linux is: containers
share the machine's network.

    python -m tests.deploy.containers IMAGE [BEFORE]

With BEFORE, an image of older code, that one takes over as after a roll-out that is taken back: on the newer schemas,
the same Kafka, and what the newer version wrote (`make test-rollback`).
"""

import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from deploy.docker import secrets
from deploy.local import stack
from deploy.services import GATEWAY, PORT, SERVICES
from tests.deploy.stand_ins import docker

WAIT_S: Final = 180
FILES: Final = ("OPENBELL_IDENTITY_SECRET", "OPENBELL_DATABASE_PASSWORD", "OPENBELL_DATABASE_URL")
READ_BY: Final = {
    GATEWAY.name: "OPENBELL_API_KEY_SECRET",
    "alerts": "OPENBELL_ALERTS_TARGET_KEYS",
    "broker": "OPENBELL_BROKER_CREDENTIAL_KEYS",
}


def _options(folder: Path, name: str, files: list[str], environment: dict[str, str]) -> list[str]:
    mounted = [part for file in files for part in ("--volume", f"{folder / file}:/run/secrets/{file}:ro")]
    told = [part for item in environment.items() for part in ("--env", "=".join(item))]
    alone = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]  # noqa: S108 - its own
    return ["--network", "host", "--name", f"openbell-test-{name}", *alone, "--memory", "1g", *mounted, *told]


@contextmanager
def container(image: str, options: list[str]) -> Generator[str]:
    """Run a container; remove it at the end."""
    made = docker("run", "--detach", *options, image)
    try:
        yield made
    finally:
        docker("rm", "--force", made)


def wait(what: str, done: Callable[[], Any]) -> Any:
    """Return the first answer of `done` that counts. Raises TimeoutError."""
    deadline = time.monotonic() + WAIT_S
    while not (found := done()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.5)
    return found


def _ports() -> dict[str, int]:
    held = {one.name: socket.create_server(("127.0.0.1", 0)) for one in SERVICES if one is not GATEWAY}
    found = {name: int(one.getsockname()[1]) for name, one in held.items()}
    for one in held.values():
        one.close()
    return {**found, GATEWAY.name: PORT}  # where the image's own health check asks


@dataclass(frozen=True, slots=True)
class Alerted:
    """Somebody who was told something."""

    user: str
    api_key: str
    alert: tuple[str, str]
    """Its id and when it was made: one that is raised again has the same id."""
    title: str

    def still(self, port: int) -> bool:
        """Whether the gateway still tells them."""
        headers = {"authorization": f"Bearer {self.api_key}"}
        url = f"http://127.0.0.1:{port}/api/alerts/{self.user}"
        answer = httpx.get(url, headers=headers, timeout=10, trust_env=False).raise_for_status()
        return self.alert in {(one["id"], one["created_at"]) for one in answer.json()["alerts"]}


def first_light(port: int = PORT, email: str = "trader@example.com") -> Alerted:
    """Sign up at the gateway, watch the simulator's stocks, and wait until an alert is there."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as http:
        body = http.post("/api/users", json={"email": email}).raise_for_status().json()
        user, http.headers["authorization"] = body["user"]["id"], f"Bearer {body['api_key']}"
        watched = {"investing_style": "trader", "tickers": ["AAPL", "GOOG", "IBM", "MSFT"]}
        http.post(f"/api/user/{user}/onboarding", json=watched).raise_for_status()
        quiet = {"min_score": 0, "min_premium_usd": "0"}
        http.patch(f"/api/user/{user}/settings", json=quiet).raise_for_status()
        alerts = wait("an alert", lambda: http.get(f"/api/alerts/{user}").json().get("alerts"))
        return Alerted(user, body["api_key"], (alerts[0]["id"], alerts[0]["created_at"]), str(alerts[0]["title"]))


class Below:
    """Postgres, Kafka and secrets, for one version after another."""

    def __init__(self, folder: Path, servers: stack.Stack) -> None:
        self.secrets = folder / "secrets"
        self._kafka = servers.kafka.bootstrap
        (self.secrets / "OPENBELL_DATABASE_URL").write_text(servers.admin_url)
        (self.secrets / "OPENBELL_DATABASE_URL").chmod(0o644)

    def migrate(self, image: str) -> None:
        """Bring the schemas to what the image knows."""
        options = _options(self.secrets, "migrations", list(FILES[1:]), {})
        docker("run", "--rm", *options, image, "python", "-m", "shared.migrate", "up")

    def alerted(self, image: str, email: str, seen: Alerted | None = None) -> Alerted:
        """Run every service of an image until somebody is alerted, and stop them.

        Raises RuntimeError when one does not end as it should, or when `seen` do not find what they were told before.
        """
        ports = _ports()
        common = {
            "OPENBELL_KAFKA_BOOTSTRAP": self._kafka,
            "OPENBELL_DATA_SOURCE": "simulator",
            "OPENBELL_UPSTREAMS": json.dumps({name: f"http://127.0.0.1:{port}" for name, port in ports.items()}),
        }
        made: dict[str, str] = {}
        with ExitStack() as held:
            for one in SERVICES:
                environment = {**common, "SERVICE": one.name, "OPENBELL_HTTP_PORT": str(ports[one.name])}
                its = [READ_BY[one.name]] if one.name in READ_BY else []
                options = _options(self.secrets, one.name, [*FILES, *its], environment)
                made[one.name] = held.enter_context(container(image, options))
            try:
                return _until_alerted(made, email, seen)
            except BaseException:
                for name, one in made.items():
                    _say(f"--- {name}\n{docker('logs', '--tail', '20', one)}")
                raise


def _until_alerted(made: dict[str, str], email: str, seen: Alerted | None) -> Alerted:
    state = ("inspect", "--format", "{{.State.Health.Status}}", made[GATEWAY.name])
    wait("the gateway's health", lambda: docker(*state) == "healthy")
    if seen and not seen.still(PORT):
        raise RuntimeError("who was alerted before does not find it")
    found = first_light(PORT, email)
    _say(f"alerted: {found.title}")
    began = time.monotonic()
    docker("stop", "--time", "25", *made.values())
    took = time.monotonic() - began
    codes = {name: docker("inspect", "--format", "{{.State.ExitCode}}", one) for name, one in made.items()}
    _say(f"stopped in {took:.1f} s: {codes}")
    if set(codes.values()) != {"0"}:
        raise RuntimeError("a service did not end when asked to")
    return found


def main() -> int:
    """Run it; return the exit code."""
    image, *before = sys.argv[1:]
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="openbell-image-")))
        folder.chmod(0o711)  # Postgres started by root runs as nobody and must pass through
        secrets.main(folder / "secrets")
        below = Below(folder, held.enter_context(stack.running(folder / "home", _say)))
        below.migrate(image)
        seen = below.alerted(image, "trader@example.com")
        for older in before:
            _say(f"back to {older}, on the schemas of {image}:")
            below.alerted(older, "later@example.com", seen)
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
