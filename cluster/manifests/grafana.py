"""Grafana: a table of panels -> a dashboard over the metrics of our verbs, and those of Ray's nodes."""

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.manifests.facts import Document

SCHEMA = 39  # of Grafana 11; later ones convert it when they load it
COLUMNS = 24  # of Grafana's grid
WIDTH, HEIGHT = 8, 8  # of a panel in it
SOURCE = {"type": "prometheus", "uid": "${source}"}

OURS = 'run=~"$run"'
LATELY = "[10m]"  # a shard takes minutes, and is counted when it is done


@dataclass(frozen=True)
class Panel:
    """Curves over time, by their legends."""

    title: str
    unit: str  # as Grafana calls it
    queries: dict[str, str]
    is_stacked: bool = False


def per_second(counter: str, by: str) -> str:
    return f"sum by ({by}) (rate(ray_latentmill_{counter}_total{{{OURS}}}{LATELY}))"


def progress(name: str, verb: str) -> str:
    return f'max by (run) (ray_latentmill_progress_{name}{{verb="{verb}",{OURS}}})'


def training(name: str) -> dict[str, str]:
    return {"{{run}}": f"max by (run) (ray_latentmill_train_{name}{{{OURS}}})"}


BY_STAGE = per_second("encode_stage_seconds", by="stage")

ROWS: dict[str, tuple[Panel, ...]] = {
    "Encode": (
        Panel("Chunks per second", "short", {"{{run}}": per_second("encode_chunks", "run")}),
        Panel(
            "Shards",
            "short",
            {
                "{{run}} done": progress("done", "encode"),
                "{{run}} left": f"{progress('wanted', 'encode')} - {progress('done', 'encode')}",
            },
            is_stacked=True,
        ),
        Panel(
            "What encoders do with their time",
            "percentunit",
            {"{{stage}}": f"{BY_STAGE} / on () group_left sum({BY_STAGE})"},
            is_stacked=True,
        ),
        Panel("Latents written", "Bps", {"{{run}}": per_second("encode_latent_bytes", "run")}),
        Panel("CPUs that decode", "short", {"{{run}}": per_second("encode_decode_cpu_seconds", "run")}),
        Panel(
            "Videos quarantined",
            "short",
            {"{{run}}": f"sum by (run) (ray_latentmill_encode_failed_videos_total{{{OURS}}})"},
        ),
    ),
    "Text, and other verbs": (
        Panel("Files of text", "short", {"{{run}} done": progress("done", "text")}),
        Panel("Files scanned", "short", {"{{run}} done": progress("done", "scan")}),
        Panel("Items per second", "short", {"{{verb}}, {{unit}}": per_second("progress_items", "verb, unit")}),
    ),
    "Train": (
        Panel("Loss", "short", training("loss")),
        Panel("Samples per second", "short", training("samples_per_s")),
        Panel("Tokens per second", "short", training("tokens_per_s")),
        Panel("Model FLOPs utilization", "percentunit", training("mfu")),
        Panel("Share of the time that waits for data", "percentunit", training("data_wait_share")),
        Panel("Goodput", "percentunit", training("goodput")),
    ),
    "Nodes": (
        Panel("CPUs", "percent", {"{{instance}}": "avg by (instance) (ray_node_cpu_utilization)"}),
        Panel("GPUs", "percent", {"{{instance}} {{GpuIndex}}": "ray_node_gpus_utilization"}),
        Panel("GPU memory", "decmbytes", {"{{instance}} {{GpuIndex}}": "ray_node_gram_used"}),
        Panel("Memory", "bytes", {"{{instance}}": "sum by (instance) (ray_node_mem_used)"}),
        Panel("Object store", "bytes", {"{{Location}}": "sum by (Location) (ray_object_store_memory)"}),
        Panel(
            "Network",
            "Bps",
            {
                "{{instance}} in": "sum by (instance) (ray_node_network_receive_speed)",
                "{{instance}} out": "sum by (instance) (ray_node_network_send_speed)",
            },
        ),
    ),
}


def grafana_dashboard() -> Document:
    """The dashboard as Grafana imports it; it asks which Prometheus to use."""
    return {
        "uid": "latentmill",
        "title": "latentmill",
        "schemaVersion": SCHEMA,
        "editable": True,
        "graphTooltip": 1,  # one crosshair through all panels
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), _run()]},
        "panels": list(_panels()),
    }


def _source() -> Document:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _run() -> Document:
    """All runs that have told anything in the time that is shown."""
    query = 'label_values({__name__=~"ray_latentmill_.+"}, run)'
    choice = {"includeAll": True, "multi": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    asked = {"query": query, "refId": "run"}
    return {"name": "run", "type": "query", "datasource": SOURCE, "query": asked, "refresh": 2, **choice}


def _panels() -> Iterator[Document]:
    """Row by row, each from left to right."""
    top, number = 0, 1
    for title, panels in ROWS.items():
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        top, number = top + 1, number + 1
        for at, panel in enumerate(panels):
            line, column = divmod(at, COLUMNS // WIDTH)
            place = {"x": column * WIDTH, "y": top + line * HEIGHT, "w": WIDTH, "h": HEIGHT}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            number += 1
        top += -(-len(panels) // (COLUMNS // WIDTH)) * HEIGHT


def _panel(panel: Panel) -> Document:
    stacking = {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 60} if panel.is_stacked else {}
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": stacking}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + at), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for at, (legend, query) in enumerate(panel.queries.items())
        ],
    }
