"""Programs are found, fetched once, or said to be missing."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from deploy.tools import GoModule, Tool, ToolMissing, resolve, verdict
from tests.deploy.missing import without

SCRIPT = "#!/bin/sh\n"


def _program(path: Path, text: str = SCRIPT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first folder of the PATH."""
    found = tmp_path / "bin"
    found.mkdir()
    monkeypatch.setenv("PATH", str(found), prepend=os.pathsep)
    return found


def test_a_program_on_the_path_is_taken_as_it_is(bin_folder: Path, tmp_path: Path) -> None:
    there = _program(bin_folder / "a-checker")
    assert resolve("a-checker", Tool(), tmp_path / "kept") == there


def test_a_program_is_unpacked_from_its_package_once(bin_folder: Path, tmp_path: Path) -> None:
    _program(bin_folder / "apt-get", f'{SCRIPT}echo "$@" >> {tmp_path}/asked; touch checkers_1.deb\n')
    _program(bin_folder / "dpkg", f"{SCRIPT}mkdir -p $3/usr/bin && echo unpacked > $3/usr/bin/a-checker\n")
    for _ in range(2):
        found = resolve("a-checker", Tool(apt="checkers"), tmp_path / "kept")
        assert found.read_text() == "unpacked\n"
    assert (tmp_path / "asked").read_text() == "download checkers\n"
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"a-checker", ".lock"}


def test_where_no_package_is_to_be_had_go_builds_it(bin_folder: Path, tmp_path: Path) -> None:
    _program(bin_folder / "apt-get", f"{SCRIPT}exit 100\n")
    _program(bin_folder / "go", f'{SCRIPT}echo "$@" > $GOBIN/a-checker\n')
    found = resolve("a-checker", Tool(apt="checkers", go="example.org/a-checker@v1"), tmp_path / "kept")
    assert found.read_text() == "install example.org/a-checker@v1\n"


def test_what_cannot_be_had_is_said_with_what_was_tried(bin_folder: Path, tmp_path: Path) -> None:
    _program(bin_folder / "apt-get", f'{SCRIPT}echo "E: Unable to locate package checkers" >&2; exit 100\n')
    with pytest.raises(ToolMissing, match=r"a-checker .*checkers: E: Unable to locate package checkers"):
        resolve("a-checker", Tool(apt="checkers"), tmp_path / "kept")


def test_a_module_is_what_was_pinned_or_is_refused(bin_folder: Path) -> None:
    _program(bin_folder / "go", f'{SCRIPT}echo \'{{"Dir": "/kept/a-module", "Sum": "h1:right"}}\'\n')
    assert GoModule("example.org/a-module", "v1", "h1:right").folder() == Path("/kept/a-module")
    with pytest.raises(ValueError, match="has the sum h1:right, and h1:other is pinned"):
        GoModule("example.org/a-module", "v1", "h1:other").folder()


def test_a_module_that_nobody_gives_is_missing_with_the_reason(bin_folder: Path) -> None:
    _program(bin_folder / "go", f'{SCRIPT}echo \'{{"Error": "no such host"}}\'; exit 1\n')
    with pytest.raises(ToolMissing, match=r"example\.org/a-module@v1 cannot be had: no such host"):
        GoModule("example.org/a-module", "v1", "h1:any").folder()


SOURCE = GoModule("example.org/a-checker", "v1", "h1:right")
BUILDS = """#!/bin/sh
case "$1" in
  mod) echo '{"Dir": "FOLDER", "Sum": "h1:right"}';;
  build) echo "$(pwd): $*" >"$3"; echo built >>BUILT;;
esac
"""


def test_what_go_does_not_install_is_built_in_its_own_folder_once(bin_folder: Path, tmp_path: Path) -> None:
    _program(bin_folder / "go", BUILDS.replace("FOLDER", str(bin_folder)).replace("BUILT", str(tmp_path / "built")))
    found = resolve("a-checker", Tool(source=SOURCE), tmp_path / "kept")
    where, said = found.read_text().split(": ")
    assert where == str(bin_folder)
    assert said.split()[::3] == ["build", "./cmd/a-checker"]
    assert resolve("a-checker", Tool(source=SOURCE), tmp_path / "kept") == found
    assert (tmp_path / "built").read_text() == "built\n"
    newer = GoModule(SOURCE.path, "v2", SOURCE.checksum)
    assert resolve("a-checker", Tool(source=newer), tmp_path / "kept") != found


def test_what_does_not_build_is_missing_with_the_reason(bin_folder: Path, tmp_path: Path) -> None:
    fails = BUILDS.replace("FOLDER", str(bin_folder)).replace('echo "$(pwd): $*" >"$3"', "echo no compiler >&2; exit 1")
    _program(bin_folder / "go", fails)
    with pytest.raises(ToolMissing, match=r"a-checker .* could not be built: no compiler"):
        resolve("a-checker", Tool(source=SOURCE), tmp_path / "kept")
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {".lock"}


def _lacks() -> Generator[str]:
    raise ToolMissing("no a-checker")
    yield ""


@pytest.mark.parametrize(("strict", "code"), [("", 0), ("0", 0), ("1", 1)])
def test_what_was_not_checked_is_said_and_where_all_has_to_be_checked_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], strict: str, code: int
) -> None:
    monkeypatch.setenv("OPENBELL_CHECK_STRICT", strict)
    assert verdict("it was", "well", _lacks()) == code
    assert capsys.readouterr().err == "SKIPPED: it was not checked: no a-checker\n"
    with pytest.raises(pytest.fail.Exception if code else pytest.skip.Exception, match="no a-checker"):
        without(ToolMissing("no a-checker"))
