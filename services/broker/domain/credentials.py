"""What an account's credentials are: names and values that never show themselves."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from shared.errors import Invalid

LONGEST: Final = 4096
_VISIBLE: Final = re.compile(r"[\x20-\x7e]+")


class BadCredentials(Invalid):
    """These are not the credentials that the venue needs."""

    code = "BAD_CREDENTIALS"


class Secrets(Mapping[str, str]):
    """Credentials, opened. Printed, logged or shown in an error they are names only."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(sorted(self._values))})"


def checked(values: Mapping[str, str], needed: Collection[str]) -> Secrets:
    """Return credentials that have the names a venue needs, and visible characters only. Raises BadCredentials."""
    problems = [{"path": name, "message": "this venue needs it"} for name in sorted(set(needed) - values.keys())]
    problems += [
        {"path": name[:40], "message": f"not of this venue: it takes {', '.join(sorted(needed)) or 'none'}"}
        for name in sorted(values.keys() - set(needed))
    ]
    problems += [
        {"path": name[:40], "message": f"1 to {LONGEST} visible ASCII characters"}
        for name, value in sorted(values.items())
        if len(value) > LONGEST or not _VISIBLE.fullmatch(value)
    ]
    if problems:
        raise BadCredentials(problems=problems)
    return Secrets(values)
