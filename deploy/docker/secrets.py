"""Makes the files that docker-compose.yml mounts as secrets; one that is there stays as it is.

    python -m deploy.docker.secrets          # into deploy/docker/secrets, which git and images leave out

Those that others make (Stripe, a mail provider) begin as empty files, which count as no secret: put yours in, or let
`python -m deploy.docker.rotate` do it.

What would surprise you: everybody may read the files, and only their owner the folder. A container mounts the file and
not the folder, and its user is not yours.
"""

import base64
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "secrets"
NOBODY: Final = "http://127.0.0.1:9/nobody-listens-here"
"""Where alerts go until somebody says where to."""


def word() -> str:
    """Return a fresh secret to sign or log in with."""
    return secrets.token_urlsafe(36)


def key() -> str:
    """Return a fresh key to encrypt with, under a name that no other has."""
    return f"k{secrets.token_hex(4)}:{base64.b64encode(secrets.token_bytes(32)).decode()}"


MADE_HERE: Final[Mapping[str, Callable[[], str]]] = {
    "OPENBELL_IDENTITY_SECRET": word,
    "OPENBELL_API_KEY_SECRET": word,
    "OPENBELL_DATABASE_PASSWORD": word,
    "OPENBELL_BROKER_CREDENTIAL_KEYS": key,
    "OPENBELL_ALERTS_TARGET_KEYS": key,
}
"""Secrets of ours that no one else has to know, and what makes each."""

GIVEN: Final = (
    "OPENBELL_API_JWT_SECRET",
    "OPENBELL_API_JWT_SECRET_BEFORE",
    "OPENBELL_ALERTS_RESEND_API_KEY",
    "OPENBELL_ALERTS_RESEND_WEBHOOK_SECRET",
    "OPENBELL_ALERTS_SENDGRID_API_KEY",
    "OPENBELL_ALERTS_SENDGRID_WEBHOOK_KEY",
    "OPENBELL_ALERTS_SMTP_PASSWORD",
    "OPENBELL_ALERTS_VAPID_PRIVATE_KEY",
    "OPENBELL_BROKER_CALLBACK_SECRETS",
    "OPENBELL_BROKER_OAUTH_VENUES",
    "OPENBELL_PAYMENT_CRYPTO_URLS",
    "OPENBELL_PAYMENT_STRIPE_KEY",
    "OPENBELL_PAYMENT_STRIPE_WEBHOOK_SECRETS",
)
"""Secrets that somebody else makes; an empty file until one is given."""


def main(folder: Path = FOLDER) -> int:
    """Write what is missing; return the exit code."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, make in MADE_HERE.items():
        _keep(folder / name, make())
    _keep(folder / "grafana_admin_password", secrets.token_urlsafe(18))
    password = _keep(folder / "postgres_password", secrets.token_urlsafe(36))
    _keep(folder / "admin_database_url", f"postgresql://postgres:{password}@postgres:5432/openbell")
    for name in GIVEN:
        _keep(folder / name, "")
    for name in ("alertmanager_page_url", "alertmanager_ticket_url"):
        _keep(folder / name, NOBODY)
    return 0


def _keep(path: Path, fresh: str) -> str:
    """Return what the file holds; write it first where there is none."""
    if not path.exists():
        path.write_text(fresh)
        path.chmod(0o644)
    return path.read_text()


if __name__ == "__main__":
    sys.exit(main())
