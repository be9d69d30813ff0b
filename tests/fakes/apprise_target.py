"""What Apprise's json:// posts to."""

import secrets
import warnings
from typing import Any

from apprise.manager_plugins import NotificationManager

from tests.fakes.posts import Answer, Posts, Request


def plugins() -> dict[str, Any]:
    """Apprise's plugins by schema; libraries that some of them load warn of their own age."""
    manager = NotificationManager()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manager.load_modules()
    return {schema: manager[schema] for schema in manager.schemas()}


class FakeAppriseTarget(Posts):
    """Endpoints that keep what they get."""

    def __init__(self) -> None:
        super().__init__()
        plugins()
        self.taken: list[str] = []
        self.path = f"/in/{secrets.token_urlsafe(24)}/"

    def take(self, request: Request) -> Answer:
        self.taken.append(request.body.decode())
        return Answer(200)
