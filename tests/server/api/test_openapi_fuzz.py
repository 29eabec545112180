"""schemathesis over our own OpenAPI document: no 5xx, no answer that the document does not describe."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
MODEL = "udever-nano"
OPERATIONS = {
    "POST /v1/embeddings": 60,
    "POST /v1/tokenize": 30,
    "POST /v1/rerank": 40,
    "POST /v1/similarity": 40,
    "GET /v1/models": 5,
    "GET /v1/models/{model}": 10,
    "POST /v1/signup": 5,
    "GET /v1/admin/keys": 10,
    "POST /v1/admin/keys": 30,
    "PATCH /v1/admin/keys/{key_id}": 20,
    "DELETE /v1/admin/keys/{key_id}": 10,
    "POST /v1/admin/keys/{key_id}/rotate": 10,
    "GET /v1/admin/accounts": 5,
    "POST /v1/admin/accounts/{account}/topups": 20,
    "GET /v1/admin/usage": 20,
    "GET /health/live": 3,
    "GET /health/ready": 3,
    "GET /metrics": 3,
}
"""Operation → examples."""


@pytest.fixture(scope="module")
def document(server: Any) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_every_operation_is_tried(document: Any) -> None:
    found = {result.ok().label for result in document.get_all_operations()}
    assert found == OPERATIONS.keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_the_service_keeps_to_its_document(
    document: Any, server: Any, admin_key: str, label: str, mode: GenerationMode
) -> None:
    method, path = label.split()
    headers = {"Authorization": f"Bearer {admin_key}"}
    operation = document[path][method]
    if mode.is_negative and not (operation.body or operation.query):
        pytest.skip("nothing in it can be wrong")

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=OPERATIONS[label],
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def holds(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = MODEL  # a made-up one would always be 404
        case.call_and_validate(base_url=server.url, headers=headers, checks=CHECKS, timeout=60)

    holds()
