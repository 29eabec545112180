"""What the files in deploy/ tell the service is what it understands."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from udever.server.settings import Settings, load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRETS = {"UDEVER_DATABASE_URL": "postgresql://user:password@host/name", "UDEVER_PEPPER": "0" * 64}


@pytest.fixture
def manifests() -> dict[str, Any]:
    """Kind → the manifest's object."""
    text = (DEPLOY / "kubernetes" / "udever.yaml").read_text("utf-8")
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(text)}


@pytest.fixture
def pod(manifests: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifests["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def settings(pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As a replica reads them."""
    for variable in pod["containers"][0]["env"]:
        monkeypatch.setenv(variable["name"], variable.get("value") or SECRETS[variable["name"]])
    return load_settings()


def fields_of(variables: list[str]) -> set[str]:
    return {name.removeprefix("UDEVER_").lower() for name in variables if name.startswith("UDEVER_")}


def test_replicas_start_with_these_settings_and_end_in_time(pod: dict[str, Any], settings: Settings) -> None:
    container = pod["containers"][0]
    assert fields_of([variable["name"] for variable in container["env"]]) <= settings.model_fields_set
    assert container["ports"] == [{"name": "http", "containerPort": settings.port}]
    before_the_end = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > before_the_end + settings.grace_seconds


def test_the_clusters_own_variables_are_no_settings(manifests: dict[str, Any], pod: dict[str, Any]) -> None:
    """Kubernetes gives each pod NAME_PORT=tcp://… for every Service, in capitals."""
    assert manifests["Service"]["metadata"]["name"] == "udever"
    assert pod["enableServiceLinks"] is False


def test_the_service_and_the_budget_find_the_replicas(manifests: dict[str, Any], pod: dict[str, Any]) -> None:
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifests["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["Service"]["spec"]["selector"] == labels
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_compose_names_only_settings_that_exist() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["udever"]
    assert fields_of(list(service["environment"])) <= set(Settings.model_fields)
