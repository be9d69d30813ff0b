"""What `make test-image` looks for in an image is found: each kind of thing that has no business there."""

import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.contents import MOST_MB, known_files, problems

KNOWN = frozenset({"services/api/main.py"})
WELL: Mapping[str, Any] = {
    "User": "10001:10001",
    "Env": ["PATH=/venv/bin:/bin", "GPG_KEY=of-the-base", "SERVICE=api"],
    "Healthcheck": {"Test": ["CMD", "python", "-c", "GET /readyz"]},
}
HISTORY = (
    {"created_by": "the base"},
    {"created_by": "ARG SERVICE=", "empty_layer": True},
    {"created_by": "COPY /layers/venv /"},
    {"created_by": "COPY /layers/app /"},
)


def _member(name: str, content: bytes = b"", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    for attribute, value in changes.items():
        setattr(member, attribute, value)
    return member, content


def _packed(files: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for member, content in files:
            archive.addfile(member, io.BytesIO(content) if member.size else None)
    return packed.getvalue()


class Image:
    """An image as `docker save` writes it: the base, our libraries, our code."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = dict(WELL)
        self.history = list(HISTORY)
        self.base = [_member("usr/bin/python3"), _member("usr/share/perl/tests", type=tarfile.DIRTYPE)]
        self.venv = [_member("venv/lib/site-packages/certifi/cacert.pem", b"public")]
        self.app = [_member("app/services/api/main.py", b"run()"), _member("app/services/__pycache__/main.pyc")]

    def said(self) -> list[str]:
        layers = {f"{number}/layer.tar": _packed(one) for number, one in enumerate([self.base, self.venv, self.app])}
        manifest = [{"Config": "config.json", "Layers": list(layers)}]
        config = {"config": self.config, "history": self.history}
        files = {"manifest.json": json.dumps(manifest).encode(), "config.json": json.dumps(config).encode(), **layers}
        self.path.write_bytes(_packed([_member(name, content) for name, content in files.items()]))
        return list(problems(self.path, KNOWN))


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path / "image.tar")


def test_an_image_that_is_well_has_no_problem(image: Image):
    assert image.said() == []


@pytest.mark.parametrize(
    "left",
    [
        "app/.git",
        "app/services/api/.env",
        "app/services/api/.env.production",
        "venv/lib/site-packages/pandas/tests",
        "venv/pip.conf",
        "app/server.key",
        "venv/lib/site-packages/other/ca.pem",
    ],
)
def test_what_was_left_behind_is_found(image: Image, left: str):
    image.venv.append(_member(left, type=tarfile.DIRTYPE))
    assert image.said() == [f"{left} has no business here"]


def test_code_that_git_does_not_know_is_found(image: Image):
    image.app.append(_member("app/services/api/notes.py"))
    assert image.said() == ["app/services/api/notes.py is no file of the repository"]


def test_what_is_not_below_the_two_folders_is_found(image: Image):
    image.app.append(_member("root/notes"))
    assert image.said() == ["root/notes is neither code nor what it needs"]


@pytest.mark.parametrize("layer", ["base", "venv"])
def test_what_builds_is_found_in_the_base_too(image: Image, layer: str):
    getattr(image, layer).append(_member("venv/bin/gcc"))
    assert image.said() == ["venv/bin/gcc builds"]


@pytest.mark.parametrize(
    "secret",
    [
        b"-----BEGIN EC PRIVATE KEY-----",
        b'key = "sk_live_00000000"',
        b"whsec_00000000000000000000",
        b"postgresql://openbell:hunter2@db:5432/openbell",
    ],
    ids=["private key", "of Stripe", "of webhooks", "password in an address"],
)
def test_a_secret_in_code_is_found_and_not_told(image: Image, secret: bytes):
    image.app[0] = _member("app/services/api/main.py", secret)
    (said,) = image.said()
    assert said.startswith("app/services/api/main.py holds a secret: ")
    assert secret.decode() not in said


@pytest.mark.parametrize(
    "change", [{"uid": 10001}, {"mode": 0o666}, {"mode": 0o4755}], ids=["ours to write", "anybody's to write", "setuid"]
)
def test_what_may_be_changed_or_raises_rights_is_found(image: Image, change: dict[str, int]):
    image.venv.append(_member("venv/bin/python", b"", **change))
    (said,) = image.said()
    assert said.startswith("venv/bin/python may be changed")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"User": ""}, "runs as root, not as 10001:10001"),
        ({"Healthcheck": None}, "has no health check"),
        ({"Env": [*WELL["Env"], "OPENBELL_API_KEY_SECRET=x"]}, "tells OPENBELL_API_KEY_SECRET to everybody"),
        ({"Env": [*WELL["Env"], "PIP_CONFIG_FILE=x"]}, "tells PIP_CONFIG_FILE to everybody"),
    ],
    ids=["root", "no health", "a secret", "where from"],
)
def test_what_its_settings_tell_is_found(image: Image, change: dict[str, Any], said: str):
    image.config |= change
    assert image.said() == [said]


def test_a_secret_that_was_built_with_is_found_in_the_history(image: Image):
    image.history.append({"created_by": "ARG TOKEN=abc", "empty_layer": True})
    image.history.append({"created_by": "RUN curl https://me:word@place", "empty_layer": True})
    assert len(image.said()) == 2


def test_one_that_grew_too_large_is_found(image: Image):
    image.venv += [_member(f"venv/{number}", b"0" * 20_000_000) for number in range(7)]
    assert image.said() == ["140 MB on top of the base, and 125 are the most"]


def test_the_bars_are_those_of_what_was_measured():
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    measured = {name: int(most) for name, most in re.findall(r"^\| ([a-z ]+) \| (\d+) MB", page, re.MULTILINE)}
    assert measured.keys() == {name or "every service" for name in MOST_MB}
    for name, most in MOST_MB.items():
        assert measured[name or "every service"] <= most <= 1.06 * measured[name or "every service"]


def test_files_of_the_repository_are_those_that_git_knows():
    assert "services/api/main.py" in known_files()
    assert not [name for name in known_files() if not name.startswith(("services/", "shared/"))]
