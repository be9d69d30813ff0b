"""`make run` on any port."""

import os
from pathlib import Path

import pytest

from deploy.local.run import tell_address
from services.alerts.settings import AlertsSettings

NAME = "OPENBELL_ALERTS_PUBLIC_URL"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(NAME, "")  # put back as it was when the test is over
    monkeypatch.delenv(NAME)
    monkeypatch.chdir(tmp_path)


def test_links_in_mails_lead_to_the_gateway_wherever_it_listens():
    tell_address(8123)
    assert AlertsSettings().public_url == "http://127.0.0.1:8123"


@pytest.mark.parametrize("where", ["environment", "file"])
def test_links_in_mails_lead_where_somebody_has_set(where: str, monkeypatch: pytest.MonkeyPatch):
    if where == "file":
        Path(".env").write_text(f"{NAME}=https://openbell.example\n")
    else:
        monkeypatch.setenv(NAME, "https://openbell.example")
    tell_address(8123)
    assert AlertsSettings().public_url == "https://openbell.example"
    assert os.environ.get(NAME) != "http://127.0.0.1:8123"
