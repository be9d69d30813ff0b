"""Points the links of all alerts at where you publish docs/runbooks, and writes the manifests anew.

    python -m deploy.prometheus.runbooks https://git.example/openbell/docs/runbooks

What would surprise you: each rule holds its whole link, for whoever reads it (Prometheus, Alertmanager, Grafana, a
pager) shows it as it is. So this is the one place to change them.
"""

import re
import sys
from pathlib import Path
from typing import Final

from deploy.k8s.__main__ import main as write_manifests

RULES: Final = Path(__file__).with_name("rules")
LINK: Final = re.compile(r"(?<=runbook_url: )(\S+)/([a-z-]+\.md)$", re.MULTILINE)


def point(base: str, folder: Path = RULES) -> None:
    """Let every rule of a folder link below `base`. Raises ValueError when that is no address of the web."""
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", base):
        raise ValueError(f"{base} is no address like https://git.example/openbell/docs/runbooks")
    for path in folder.glob("*.yml"):
        path.write_text(LINK.sub(lambda found: f"{base.rstrip('/')}/{found[2]}", path.read_text()))


def main() -> int:
    """Change all links; return the exit code."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program and the address
        sys.exit((__doc__ or "").strip())
    try:
        point(sys.argv[1])
    except ValueError as error:
        sys.exit(str(error))
    return write_manifests()


if __name__ == "__main__":
    sys.exit(main())
