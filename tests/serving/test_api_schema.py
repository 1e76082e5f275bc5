"""Fuzz the HTTP API against its own OpenAPI schema."""

from types import SimpleNamespace

import pytest

from s2rm_jax.serving.limits import Limits
from s2rm_jax.serving.service import Service

pytest.importorskip("fastapi", reason="the extra 'demo' is not installed")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")

SETTINGS = hypothesis.settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much],
)


# A schema cannot express that a string is an image, so requests that match the schema may be rejected.
EXCLUDED_CHECKS = [schemathesis.checks.positive_data_acceptance]
# All values in a form are text, so a number or null in place of an expression is accepted as an expression.
EXCLUDED_CHECKS_OF_FORMS = [*EXCLUDED_CHECKS, schemathesis.checks.negative_data_rejection]


@pytest.fixture
def operations(segmenter):
    from s2rm_jax.serving.api import build_api

    service = Service(segmenter, Limits(per_minute=100_000, work_per_minute=10**9))
    # In this thread: the type checks in tests draw random numbers, and Hypothesis objects if another thread does so.
    service._lanes = SimpleNamespace(submit=lambda work: work())
    app = build_api(service)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    return {operation.ok().label: operation.ok() for operation in schema.get_all_operations()}


# Not parametrized by schemathesis, whose pytest plugin requires other versions of pytest.
@pytest.mark.parametrize(
    ("label", "mode"), [("GET /healthz", "positive"), ("POST /segment", "positive"), ("POST /segment", "negative")]
)
def test_responses_match_the_schema(operations, label, mode):
    statuses = set()

    @SETTINGS
    @hypothesis.given(case=operations[label].as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def fuzz(case):
        excluded = EXCLUDED_CHECKS_OF_FORMS if case.media_type == "multipart/form-data" else EXCLUDED_CHECKS
        statuses.add(case.call_and_validate(excluded_checks=excluded).status_code)

    fuzz()
    assert statuses <= ({200} if label == "GET /healthz" else {200, 400, 415, 422})


def test_the_example_of_the_schema_is_valid(operations):
    operation = operations["POST /segment"]
    properties = operation.schema.raw_schema["paths"]["/segment"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]["properties"]
    body = {name: properties[name]["examples"][0] for name in ("image", "expressions")}
    case = operation.Case(body=body, media_type="application/json")
    answer = case.call_and_validate()
    assert answer.status_code == 200
    assert answer.json()["results"][0]["area"] == 32
