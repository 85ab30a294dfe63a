"""`/metrics`: what Prometheus reads, right over all workers."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from flask.testing import FlaskClient
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from bridge.ops.incidents import CODES
from bridge.parts import parts_of
from tests.app.conftest import take_store_away
from tests.conftest import (
    ALICE,
    KEYS,
    MakeApp,
    MakeService,
    Service,
    bearer,
    eventually,
    listeners,
    send,
)

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
OPEN_METRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


def read(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def scrape(client: FlaskClient) -> Samples:
    answer = client.get("/metrics", headers=bearer("admin"))
    assert answer.status_code == 200
    return read(answer.text)


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        assert "CI" not in os.environ, "promtool is missing: apt-get install prometheus"
        pytest.skip("there is no promtool (Debian: apt-get install prometheus)")
    return found


def test_metrics_tell_what_has_happened(client: FlaskClient) -> None:
    send(client, braze_campaign_id="summer", dispatch_id="d1")
    again = {"user_id": ALICE, "braze_campaign_id": "summer", "dispatch_id": "d1"}
    client.post("/webhooks/braze", json=again, headers=bearer("webhook"))
    client.post("/webhooks/braze", json={}, headers=bearer("webhook"))
    client.post("/webhooks/braze", json=again)
    for user_id in (ALICE, ALICE, "nobody"):
        url = f"/connected-content/tags?user_id={user_id}"
        client.get(url, headers=bearer("content"))
    client.get(f"/priv/v1/apps/bridge/users/{ALICE}/tags", headers=bearer("content"))
    samples = scrape(client)
    for outcome in ("accepted", "duplicate", "rejected"):
        assert value(samples, "bridge_webhooks_total", outcome=outcome) == 1
    assert value(samples, "bridge_lookups_total", outcome="miss") == 1
    assert value(samples, "bridge_lookups_total", outcome="hit") == 2
    assert value(samples, "bridge_lookups_total", outcome="not_found") == 1
    assert value(samples, "bridge_sessionm_calls_total", system="core") == 2
    assert value(samples, "bridge_sessionm_errors_total", system="core") == 0
    assert value(samples, "bridge_auth_failures_total") == 1
    assert value(samples, "bridge_queue_writes") == 1
    assert value(samples, "bridge_events", state="rejected") == 1
    assert value(samples, "bridge_store_up") == 1
    assert value(samples, "bridge_sessionm_state", system="core", state="up") == 1
    assert value(samples, "bridge_lookup_seconds_count") == 4
    # Whoever is refused for the key is no webhook.
    assert value(samples, "bridge_webhook_seconds_count") == 3


def test_refused_requests_count_in_no_latency(client: FlaskClient) -> None:
    send(client, braze_campaign_id="summer")
    sent = {"user_id": ALICE, "braze_campaign_id": "summer"}
    other_site = {**bearer("webhook"), "Sec-Fetch-Site": "cross-site"}
    for headers, status in (({}, 401), (bearer("content"), 403), (other_site, 403)):
        answer = client.post("/webhooks/braze", json=sent, headers=headers)
        assert answer.status_code == status
    samples = scrape(client)
    assert value(samples, "bridge_webhook_seconds_count") == 1
    assert value(samples, "bridge_webhook_seconds_sum") < 5
    assert value(samples, "bridge_auth_failures_total") == 3
    webhooks = client.get("/health", headers=bearer("admin")).get_json()["checks"]["webhooks"]
    assert 0 < webhooks["p99_ms"] < 5000


def test_buckets_are_cumulative(client: FlaskClient) -> None:
    for _ in range(5):
        client.get(f"/connected-content/tags?user_id={ALICE}", headers=bearer("content"))
    samples = scrape(client)
    buckets = sorted(
        (float(dict(labels)["le"]), number)
        for (name, labels), number in samples.items()
        if name == "bridge_lookup_seconds_bucket"
    )
    numbers = [number for _bound, number in buckets]
    assert numbers == sorted(numbers)
    assert buckets[-1] == (float("inf"), 5)
    assert 0 < value(samples, "bridge_lookup_seconds_sum") < 5


def test_both_formats_are_offered(client: FlaskClient) -> None:
    plain = client.get("/metrics", headers=bearer("admin"))
    assert plain.content_type.startswith("text/plain; version=0.0.4")
    answer = client.get("/metrics", headers={**bearer("admin"), **OPEN_METRICS})
    assert answer.content_type.startswith("application/openmetrics-text")
    families = openmetrics.text_string_to_metric_families(answer.text)  # type: ignore[no-untyped-call]
    names = {family.name for family in families}
    assert {"bridge_webhooks", "bridge_lookup_seconds", "bridge_build"} <= names
    assert client.get("/metrics", headers=bearer("content")).status_code == 403


def test_no_label_names_a_customer_or_a_campaign(client: FlaskClient) -> None:
    send(client, braze_campaign_id="summer-promotion")
    text = client.get("/metrics", headers=bearer("admin")).text
    for word in ("summer-promotion", ALICE, *KEYS.values()):
        assert word not in text


def test_with_the_store_away_metrics_say_so(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app()
    client = app.test_client()
    send(client, braze_campaign_id="summer")
    take_store_away(app, tmp_path)
    samples = scrape(client)
    assert value(samples, "bridge_store_up") == 0
    assert value(samples, "bridge_status", state="down") == 1


def test_promtool_finds_nothing_to_say(client: FlaskClient, promtool: str) -> None:
    send(client, braze_campaign_id="summer")
    text = client.get("/metrics", headers=bearer("admin")).text
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def succeeds(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_example_configuration(tmp_path: Path, promtool: str) -> None:
    for path in DEPLOY.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "bridge-viewer-key").write_text("secret")
    succeeds([promtool, "check", "config", "scrape.yml"], tmp_path)


RULES = """
rule_files: [alerts.yml]
tests:
  - interval: 1m
    input_series:
      - {series: 'bridge_sessionm_state{system="connect", state="refusing"}', values: "1x9"}
      - {series: 'bridge_sessionm_state{system="core", state="failing"}', values: "1 0 1 0 1 0 1x4"}
      - {series: 'bridge_sessionm_state{system="core", state="down"}', values: "0 1 0 1 0 1 0x4"}
      - {series: 'bridge_delivery_state{state="paused"}', values: "0x9"}
    promql_expr_test:
      - expr: count by (alertname, system) (ALERTS{alertstate="firing"})
        eval_time: 6m
        exp_samples:
          - {labels: '{alertname="BridgeSessionMFailing", system="core"}', value: 1}
          - {labels: '{alertname="BridgeSessionMRefuses", system="connect"}', value: 1}
  - interval: 1m
    input_series:
      - {series: 'bridge_sessionm_state{system="core", state="refusing"}', values: "1x9"}
      - {series: 'bridge_delivery_state{state="paused"}', values: "1x9"}
    promql_expr_test:
      - expr: count by (alertname) (ALERTS{alertstate="firing"})
        eval_time: 6m
        exp_samples: [{labels: '{alertname="BridgeDeliveryPaused"}', value: 1}]
  - interval: 1m
    input_series: [CODES]
    promql_expr_test:
      - expr: count (ALERTS{alertname="BridgeIncident", alertstate="firing"})
        eval_time: 12m
        exp_samples: [{value: NUMBER}]
"""


def test_prometheus_alerts_for_refusals_outages_and_each_code(
    tmp_path: Path, promtool: str
) -> None:
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    codes = (f"{{series: 'bridge_incidents{{code=\"{code}\"}}', values: 1x20}}" for code in CODES)
    rules = RULES.replace("CODES", ", ".join(codes)).replace("NUMBER", str(len(CODES)))
    (tmp_path / "test.yml").write_text(rules)
    succeeds([promtool, "test", "rules", "test.yml"], tmp_path)


def test_alerts_and_the_grafana_dashboard_ask_only_for_metrics_that_there_are(
    client: FlaskClient,
) -> None:
    text = client.get("/metrics", headers=bearer("admin")).text
    known = {name for name, _labels in read(text)}
    for path in (DEPLOY / "alerts.yml", DEPLOY.parent / "grafana/bridge.json"):
        asked = set(re.findall(r"\bbridge_[a-z_]+", path.read_text()))
        assert asked
        assert asked <= known, path


def test_the_grafana_dashboard_has_no_panel_without_a_question() -> None:
    document = json.loads((DEPLOY.parent / "grafana/bridge.json").read_text())
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    for panel in panels:
        assert panel["title"]
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            assert 'job="$job"' in target["expr"]


def test_open_incidents_are_counted_by_cause(client: FlaskClient) -> None:
    def of(code: str) -> float:
        text = client.get("/metrics", headers=bearer("admin")).text
        return value(read(text), "bridge_incidents", code=code)

    # A busy store is an incident too, and hides this one while it lasts.
    eventually(lambda: of("delivery_stopped") == 1)
    assert of("dead_writes") == 0


def total(service: Service, name: str, **labels: str) -> float:
    answer = requests.get(f"{service.url}/metrics", headers=bearer("admin"), timeout=10)
    return value(read(answer.text), name, **labels)


def test_figures_add_up_over_workers_and_none_goes_back(
    make_service: MakeService,
) -> None:
    service = make_service("--workers", "4")
    seen = 0.0

    def work(times: int) -> None:
        for number in range(times):
            assert service.webhook(user_id=ALICE, braze_campaign_id=f"c{number}").status_code == 202
            assert service.lookup("tags", user_id=ALICE).status_code == 200

    def all_there() -> bool:
        # Another one delivers.
        return len(service.children()) == 5 and listeners(service.port) == 4

    def settled(expected: int) -> Callable[[], bool]:
        def look() -> bool:
            # A new connection each time, and with it one of the workers.
            nonlocal seen
            try:
                found = total(service, "bridge_webhooks_total", outcome="accepted")
            except requests.ConnectionError:
                # It was a worker that was killed at this moment.
                return False
            assert seen <= found <= expected
            seen = found
            return found == expected

        return look

    work(30)
    eventually(settled(30))
    assert service.process
    before = set(service.workers())
    service.process.send_signal(signal.SIGHUP)
    eventually(lambda: not before & set(service.workers()) and all_there(), 40)
    eventually(settled(30))
    work(10)
    eventually(settled(40))
    # The last that began: one that counts.
    os.kill(service.workers()[-1], signal.SIGKILL)
    eventually(all_there, 20)
    eventually(settled(40))
    work(10)
    eventually(settled(50))
    # Another worker may have counted them, and add them a moment later.
    eventually(lambda: total(service, "bridge_lookup_seconds_count") == 50)
    # The dashboard's figures and the health page's are the same in every worker.
    eventually(lambda: service.health()["checks"]["delivery"]["queued"] == 0)
    for _ in range(8):
        checks = service.health()["checks"]
        assert checks["cache"]["lookups"] == 50
        assert checks["webhooks"]["accepted"] == 50
        assert checks["sessionm_core"]["calls"] >= 1


def test_the_last_share_is_written_when_the_service_ends(
    make_service: MakeService, make_app: MakeApp
) -> None:
    service = make_service("--workers", "2")
    for number in range(20):
        service.webhook(user_id=ALICE, braze_campaign_id=f"c{number}")
    assert service.stop() == 0
    parts = parts_of(make_app())
    totals = parts.telemetry.totals()
    assert totals.count("webhooks_accepted") == 20
    assert totals.count("delivered") == sum(one.delivered for one in parts.events.campaigns())
