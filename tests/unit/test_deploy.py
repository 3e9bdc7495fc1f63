"""The files in `deploy/` fit the program: queries, flags, times, paths."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.fakes import make_context
from pagemill.cli.parser import build_parser
from pagemill.config.args import ServeArgs
from pagemill.engine.messages import EngineStats

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/pagemill.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
    *(v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"),
]
METRIC = re.compile(r"\b(?:vllm:|http_|process_)\w+")
GROUPS = re.compile(r"\bby \(([^)]*)\)")


def exposed() -> dict[str, set[str]]:
    """Name -> labels of every sample that /metrics can have, once everything has happened."""
    context = make_context()
    metrics = context.metrics
    context.client.stats = EngineStats(accepted_by_position=[1])  # type: ignore[misc]
    metrics.observe_finish("stop")
    metrics.observe_rejection("overloaded")
    metrics.observe_sources(1, 1)
    metrics.observe_tool_parse("chat_completion", streaming=False, called=True)
    metrics.observe_http("GET", "/", 200, 0.1)
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


EXPOSED = exposed()


@pytest.mark.parametrize("query", QUERIES)
def test_queries_ask_for_what_is_there(query: str) -> None:
    names = METRIC.findall(query)
    assert names
    labels: set[str] = set()
    for name in names:
        assert name in EXPOSED, name
        labels |= EXPOSED[name]
    for group in GROUPS.findall(query):
        assert {label.strip() for label in group.split(",")} <= labels, query


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(DEPLOY / "systemd/pagemill.service")
    return parser


def test_the_unit_starts_the_server_and_lets_it_drain() -> None:
    service = unit()["Service"]
    command = service["ExecStart"].replace("%d", "/run").replace("$PAGEMILL_FLAGS", "")
    _, *arguments = shlex.split(command.replace("$PAGEMILL_MODEL", "org/model"))
    parsed = build_parser().parse_args(arguments)
    assert parsed.command == "serve"
    assert parsed.api_key_file == "/run/api-keys"
    assert int(service["TimeoutStopSec"]) > ServeArgs().drain_timeout
    assert service["KillMode"] == "mixed"
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"


def test_the_unit_is_closed_in() -> None:
    service = unit()["Service"]
    yes = ("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictNamespaces")
    assert all(service[name] == "yes" for name in yes)
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""


def dockerfile() -> list[tuple[str, str, str]]:
    """(stage, instruction, rest) of every instruction."""
    text = (DEPLOY / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    stage, found = "", []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            stage = rest.rpartition(" AS ")[2]
        if instruction:
            found.append((stage, instruction, " ".join(rest.split())))
    return found


def test_images_are_run_without_rights_and_watched() -> None:
    rows = dockerfile()
    for target in ("cpu", "cuda"):
        (user,) = [rest for stage, word, rest in rows if (stage, word) == (target, "USER")]
        assert int(user) > 0
        assert [word for stage, word, _ in rows if stage == target][-1] == "USER"
        assert (target, "FROM", f"base AS {target}") in rows
    base = {word: rest for stage, word, rest in rows if stage == "base"}
    assert "/health" in base["HEALTHCHECK"]
    assert json.loads(base["ENTRYPOINT"]) == ["pagemill"]
    parsed = build_parser().parse_args(json.loads(base["CMD"]))
    assert (parsed.host, parsed.no_auth) == ("0.0.0.0", False)


def test_images_are_made_of_files_that_exist() -> None:
    copied = [rest for _, word, rest in dockerfile() if word in ("COPY", "ADD")]
    sources = [s for rest in copied if "--from" not in rest for s in rest.split()[:-1]]
    assert sources
    assert all((ROOT / source).exists() for source in sources)
    words = {word for _, word, _ in dockerfile()}
    known = "ARG FROM RUN WORKDIR COPY ENV EXPOSE VOLUME STOPSIGNAL HEALTHCHECK ENTRYPOINT CMD USER"
    assert words <= set(known.split())


def test_prometheus_scrapes_the_default_port() -> None:
    config: Any = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{ServeArgs().port}"]}]
