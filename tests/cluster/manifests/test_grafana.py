"""The dashboard shows what is measured: every metric it names is one that Ray and our verbs tell."""

import re
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from cluster.manifests.grafana import COLUMNS, ROWS, grafana_dashboard
from jobs.config import RunConfig
from jobs.progress import progress, run_meters
from jobs.shard_report import ShardReport, measure_shard
from jobs.training.metrics import Metrics
from jobs.training.throughput import Work, rates
from tests.ray_metrics import scrape_until

NAME = re.compile(r"\bray_\w+")
QUERIES = {
    f"{title}: {panel.title}: {legend}": query
    for title, panels in ROWS.items()
    for panel in panels
    for legend, query in panel.queries.items()
}


def panels() -> list[dict[str, Any]]:
    return grafana_dashboard()["panels"]


def measure(out: Path) -> None:
    """What verbs tell that scan, encode and train."""
    config = RunConfig()
    for verb in ("scan", "encode", "text"):
        with progress(verb, 2, "files", config) as bar:
            bar.advance()
    stages = {"encode": 1.0, "decode": 1.0, "write": 1.0, "wait": 1.0}
    report = ShardReport(3, 40, 10**6, ("a video",), 4.0, 3.0, 1.0, 2.5, stages=stages, psnr=(), drift=())
    measure_shard(run_meters("encode", config), report)
    speed = rates(Work(8, 1000, 1e12, 0.1), ranks=1, step_s=1.0, peak_flops=1e13)
    Metrics(out, start=0).write(step=1, loss=1.0, **speed)


@pytest.fixture(scope="module")
def told(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of all metrics of a node on which something was scanned, encoded and trained."""
    out = tmp_path_factory.mktemp("out")
    named = {name for query in QUERIES.values() for name in NAME.findall(query)}
    without_gpus = {name for name in named if not re.search("gpu|gram", name)}

    def is_told(found: dict[str, float]) -> bool:
        measure(out)  # again, as verbs do: a gauge that is set before the node listens is lost
        return without_gpus <= found.keys()

    found = scrape_until(is_told)
    return {*found, *(f"ray_{name}" for name in METRICS_GAUGES if re.search("gpu|gram", name))}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_every_query_is_of_metrics_that_are_told(query: str, told: set[str]) -> None:
    names = set(NAME.findall(query))
    assert names and names <= told
    assert [query.count(one) for one in "([{"] == [query.count(one) for one in ")]}"]


@pytest.mark.parametrize(("legend", "query"), [(name.split(": ")[-1], query) for name, query in QUERIES.items()])
def test_a_legend_names_labels_that_the_query_keeps(legend: str, query: str) -> None:
    kept = {label for group in re.findall(r"\bby \(([^)]*)\)", query) for label in group.split(", ")}
    labels = set(re.findall(r"{{(\w+)}}", legend))
    assert labels <= (kept or {"instance", "GpuIndex"})


def test_panels_lie_beside_each_other_inside_the_grid() -> None:
    cells = [
        (number, x, y)
        for number, place in enumerate(panel["gridPos"] for panel in panels())
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len({(x, y) for _, x, y in cells}) == len(cells)
    assert {x for _, x, _ in cells} == set(range(COLUMNS))


def test_a_row_is_above_its_panels() -> None:
    tops = [(panel["gridPos"]["y"], panel["type"]) for panel in panels()]
    assert tops == sorted(tops, key=lambda one: one[0])
    assert [panel["title"] for panel in panels() if panel["type"] == "row"] == list(ROWS)


def test_it_is_what_grafana_imports() -> None:
    found = grafana_dashboard()
    assert {type(found[name]) for name in ("title", "uid")} == {str} and type(found["schemaVersion"]) is int
    numbers = [panel["id"] for panel in panels()]
    assert len(set(numbers)) == len(numbers)
    source, run = found["templating"]["list"]
    assert (source["type"], source["query"], run["type"]) == ("datasource", "prometheus", "query")
    curves = [panel for panel in panels() if panel["type"] != "row"]
    for asked in (*curves, run, *(target for panel in curves for target in panel["targets"])):
        assert asked["datasource"] == {"type": "prometheus", "uid": f"${{{source['name']}}}"}
    assert all(f"${run['name']}" in query for query in QUERIES.values() if "latentmill" in query)
