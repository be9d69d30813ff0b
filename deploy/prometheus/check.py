"""Checks what Prometheus and Alertmanager are given, with their own tools; part of `make check`.

    python -m deploy.prometheus.check

promtool reads configuration and rules and runs each case of `deploy.prometheus.cases`; amtool reads the configuration
of alerts' ways. A tool that cannot be had is said, and costs nothing: what it would have found is then for CI to find.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from deploy.prometheus.cases import CASES, Series
from deploy.tools import find, verdict

HERE: Final = Path(__file__).parent
RULES: Final = sorted(HERE.glob("rules/*.yml"))
ALERTMANAGER: Final = HERE.parent / "alertmanager" / "alertmanager.yml"


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert rule as it is written."""

    name: str
    expr: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


def rules(*paths: Path) -> Iterator[Mapping[str, Any]]:
    """Yield all rules, of alerts and of recordings; of some files, or of all."""
    for path in paths or RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def alerts(*paths: Path) -> list[Alert]:
    """Return all alert rules; of some files, or of all."""
    return [
        Alert(rule["alert"], rule["expr"], rule["labels"], rule["annotations"])
        for rule in rules(*paths)
        if "alert" in rule
    ]


def trials() -> list[dict[str, Any]]:
    """Return the cases as promtool's files of unit tests; each reads but the rules that it needs, which is quicker."""
    found: dict[tuple[Path, int], list[dict[str, Any]]] = {}
    for path in RULES:
        for name in (alert.name for alert in alerts(path)):
            case = CASES[name]
            tests = found.setdefault((path, case.every), [])
            tests.append(_trial(name, "fires", case.fires, case.at))
            tests.append(_trial(name, "quiet", case.quiet, case.at))
    return [
        {"rule_files": [str(path)], "evaluation_interval": f"{every}m", "tests": tests}
        for (path, every), tests in found.items()
    ]


def _trial(name: str, what: str, series: Series, at: int) -> dict[str, Any]:
    fired = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) > bool 0'
    return {
        "name": f"{name} {what}",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": fired,
                "eval_time": f"{at}m",
                "exp_samples": [{"labels": "{}", "value": 1}] if what == "fires" else [],
            }
        ],
    }


def run(tool: str, *arguments: str) -> str | None:
    """Run a tool; return what it complained about, None when it found nothing. Raises ToolMissing."""
    done = subprocess.run(  # noqa: S603 - our own arguments
        [find(tool), *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    return f"{tool} {' '.join(arguments)}\n{done.stdout}{done.stderr}" if done.returncode else None


def problems() -> Iterator[str]:
    """Yield what the tools complain about. Raises ToolMissing."""
    with tempfile.TemporaryDirectory() as scratch:
        tests: list[str] = []
        for number, trial in enumerate(trials()):
            path = Path(scratch) / f"rules-{number}.test.yml"
            path.write_text(yaml.safe_dump(trial, sort_keys=False))
            tests.append(str(path))
        for command in (
            ("promtool", "check", "config", str(HERE / "prometheus.yml")),
            ("promtool", "check", "rules", *map(str, RULES)),
            ("promtool", "test", "rules", *tests),
            ("amtool", "check-config", str(ALERTMANAGER)),
        ):
            if (problem := run(*command)) is not None:
                yield problem


def main() -> int:
    """Tell what is wrong; return the exit code."""
    well = f"Prometheus: {len(alerts())} alerts, each tried with what fires it and what does not."
    return verdict("rules of Prometheus and Alertmanager were", well, problems())


if __name__ == "__main__":
    sys.exit(main())
