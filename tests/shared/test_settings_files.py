"""A setting may be a file that has the variable's name; the variable wins."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.api.settings import ApiSettings
from shared.messaging.kafka import KafkaAddress
from shared.settings import SharedSettings


def test_a_secret_is_read_from_its_file_and_a_variable_wins_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "OPENBELL_IDENTITY_SECRET").write_text("from a file\n")
    (tmp_path / "OPENBELL_API_KEY_SECRET").write_text("also from a file")
    (tmp_path / "OPENBELL_KAFKA_USER").write_text("somebody")
    monkeypatch.setenv("OPENBELL_KAFKA_USER", "somebody else")
    shared = SharedSettings(_secrets_dir=tmp_path)  # pyright: ignore[reportCallIssue] - pydantic-settings' own
    api = ApiSettings(_secrets_dir=tmp_path)  # pyright: ignore[reportCallIssue] - same
    assert shared.identity_secret.get_secret_value() == "from a file"
    assert api.key_secret.get_secret_value() == "also from a file"
    assert shared.kafka_user == "somebody else"


def test_a_login_without_a_certificate_is_not_encrypted_and_says_so():
    address = KafkaAddress("kafka:9092", user="api", password="its password")
    assert address.connection()["security_protocol"] == "SASL_PLAINTEXT"
    assert KafkaAddress("kafka:9092").connection() == {
        "bootstrap_servers": "kafka:9092",
        "security_protocol": "PLAINTEXT",
    }
    assert "its password" not in repr(address)


def test_a_level_that_logs_do_not_know_is_refused_with_those_that_they_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENBELL_LOG_LEVEL", "debug")
    assert SharedSettings().log_level == "DEBUG"
    monkeypatch.setenv("OPENBELL_LOG_LEVEL", "loud")
    with pytest.raises(ValidationError, match=r"log_level\s+Input should be 'DEBUG', 'INFO'"):
        SharedSettings()
