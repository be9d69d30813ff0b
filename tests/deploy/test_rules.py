"""Alert rules fire at what they are for and keep quiet beside it, ask for metrics that exist, and lead to a runbook."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.metrics import LABELS, OVER_REPLICAS, declared
from deploy.prometheus.cases import CASES
from deploy.prometheus.check import ALERTMANAGER, RULES, Alert, alerts, problems, rules, run, trials
from deploy.prometheus.runbooks import point
from deploy.promql import reads
from deploy.tools import ToolMissing, find
from tests.deploy.missing import without

ROOT = Path(__file__).parents[2]
ALERTS = alerts()
EXPRESSIONS = [rule["expr"] for rule in rules()]
METRICS = {metric.name: metric for metric in declared()}
OTHERS = ("kube_", "kubelet_", "cnpg_", "certmanager_", "probe_", "process_", "node_filesystem_", "up", "openbell:")
"""Series that exporters of others bring, and our own recordings."""
TARGET_LABELS = {"instance", "job", "app", "namespace", "le"}
each = pytest.mark.parametrize("alert", ALERTS, ids=lambda one: one.name)


@each
def test_an_alert_has_something_that_fires_it_and_something_that_does_not(alert: Alert) -> None:
    case = CASES[alert.name]
    assert case.fires
    assert case.quiet
    assert case.fires != case.quiet


def test_no_case_is_left_of_a_rule_that_is_gone() -> None:
    assert sorted(CASES) == sorted(alert.name for alert in ALERTS)


@each
def test_an_alert_says_who_hears_of_it_what_it_is_and_what_to_do(alert: Alert) -> None:
    assert alert.labels["severity"] in {"page", "ticket"}
    assert alert.annotations["summary"]
    base, _, page = alert.annotations["runbook_url"].rpartition("/")
    assert base.startswith("https://")
    assert base == ALERTS[0].annotations["runbook_url"].rpartition("/")[0], "`make runbooks` changes all of them"
    runbook = ROOT / "docs" / "runbooks" / page
    assert alert.name in runbook.read_text(), f"{runbook.name} does not name {alert.name}"


def test_links_of_all_alerts_follow_one_address(tmp_path: Path) -> None:
    copied = Path(shutil.copytree(RULES[0].parent, tmp_path / "rules"))
    point("https://git.mine/openbell/docs/runbooks/", copied)
    moved = alerts(*sorted(copied.glob("*.yml")))
    assert [one.name for one in moved] == [one.name for one in ALERTS]
    for one, before in zip(moved, ALERTS, strict=True):
        page = before.annotations["runbook_url"].rpartition("/")[2]
        assert one.annotations["runbook_url"] == f"https://git.mine/openbell/docs/runbooks/{page}"
    for wrong in ("docs/runbooks", "https://", "https://git.mine/a b"):
        with pytest.raises(ValueError, match="is no address like"):
            point(wrong, copied)
    assert alerts(*sorted(copied.glob("*.yml"))) == moved


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=[f"{n}" for n in range(len(EXPRESSIONS))])
def test_a_rule_asks_for_metrics_and_labels_that_exist_and_sums_no_fact_that_replicas_share(expression: str) -> None:
    for read in reads(expression):
        metric = METRICS.get(read.metric(set(METRICS)))
        if metric is None:
            assert read.name.startswith(OTHERS), f"{read.name} is no metric of ours"
            continue
        assert read.labels <= {*metric.labels, *TARGET_LABELS}, f"{metric.name} has no such label"
        shared = OVER_REPLICAS.get(metric.name) == "max"
        assert not (shared and read.within == "sum"), f"{metric.name} is the same on every replica"


def test_labels_of_ours_are_not_those_that_prometheus_sets_itself() -> None:
    assert not {"job", "instance", "namespace", "pod", "container"} & set(LABELS)


def test_the_tools_find_nothing_and_every_case_holds() -> None:
    assert list(_problems()) == []


def test_a_case_that_does_not_hold_is_told(tmp_path: Path) -> None:
    rule = next(path for path in RULES if path.stem == "messaging")
    changed = tmp_path / "messaging.yml"
    changed.write_text(
        rule.read_text().replace("openbell_consumer_fuse_open) == 1", "openbell_consumer_fuse_open) == 2")
    )
    assert changed.read_text() != rule.read_text()
    tried: list[dict[str, Any]] = trials()
    trial = next(one for one in tried if one["rule_files"] == [str(rule)])
    tests = tmp_path / "tests.yml"
    tests.write_text(yaml.safe_dump(trial | {"rule_files": [str(changed)]}, sort_keys=False))
    problem = _run("promtool", "test", "rules", str(tests))
    assert problem is not None
    assert "FuseBlown" in problem


def test_consequences_are_kept_quiet_only_by_their_own_cause() -> None:
    """A matcher that is missing on both sides counts as equal: a page would silence every ticket."""
    config = yaml.safe_load(ALERTMANAGER.read_text())
    by_name = {alert.name: alert for alert in ALERTS}
    for rule in config["inhibit_rules"]:
        for side in ("source_matchers", "target_matchers"):
            for matcher in rule[side]:
                name, _, wanted = (part.strip() for part in matcher.replace("=~", "=").partition("="))
                if name == "alertname":
                    assert set(wanted.strip('"').split("|")) <= set(by_name)
        for label in rule.get("equal", ()):
            sides = [*rule["source_matchers"], *rule["target_matchers"]]
            assert any("alertname" in one or one.startswith(label) for one in sides)


def _problems() -> list[str]:
    try:
        return list(problems())
    except ToolMissing as missing:
        without(missing)


def _run(tool: str, *arguments: str) -> str | None:
    try:
        find(tool)
    except ToolMissing as missing:
        without(missing)
    return run(tool, *arguments)
