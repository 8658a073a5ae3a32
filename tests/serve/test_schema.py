"""The service against its own OpenAPI document."""

import jsonschema
import pytest

from tests.serve.conftest import picture, serving, small_network
from tunable_ops.serve.problems import CODES

KEY = "correct-horse-battery"


def test_the_document_names_models_limits_problems_and_examples():
    with serving({"one": small_network(), "two": small_network()}, max_bytes=12345) as client:
        document = client.get("/openapi.json").json()
    restore = document["paths"]["/v1/restore"]["post"]
    parameters = {parameter["name"]: parameter for parameter in restore["parameters"]}
    assert set(parameters) == {"model", "lam", "format", "quality", "bits"}
    assert parameters["model"]["schema"]["enum"] == ["one", "two"] and parameters["model"]["example"] == "one"
    assert "sigma=25,texture=0.5" in str(parameters["lam"])
    assert "12345 bytes" in restore["description"]
    assert set(restore["requestBody"]["content"]) >= {"image/png", "image/jpeg", "image/webp", "image/tiff"}
    named = {code for answer in restore["responses"].values() for code in _examples(answer)}
    assert named == set(CODES) - {"not_found", "method_not_allowed", "wrong_key"}
    assert set(restore["responses"]) == {"200", *(str(CODES[code][0]) for code in named)}
    assert "securitySchemes" not in document["components"]


def _examples(answer):
    return answer["content"].get("application/problem+json", {}).get("examples", {})


def test_with_a_key_the_document_says_so():
    with serving({"one": small_network()}, api_key=KEY) as client:
        document = client.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    for path in ("/v1/restore", "/v1/models", "/metrics"):
        (operation,) = document["paths"][path].values()
        assert operation["security"] == [{"bearer": []}, {"header": []}] and "401" in operation["responses"]
    assert "security" not in document["paths"]["/healthz"]["get"]
    assert KEY not in str(document)


def test_examples_and_answers_suit_the_document(client):
    document = client.get("/openapi.json").json()

    def check(value, schema):
        jsonschema.validate(value, {**schema, "components": document["components"]})

    for path, operations in document["paths"].items():
        for operation in operations.values():
            for answer in operation["responses"].values():
                for media_type, content in answer.get("content", {}).items():
                    for example in content.get("examples", {}).values():
                        check(example["value"], content["schema"])
                    if media_type == "application/json":
                        check(client.get(path).json(), content["schema"])
    problem = client.post("/v1/restore?model=none", content=b"x").json()
    check(problem, {"$ref": "#/components/schemas/Problem"})
    models = document["components"]["schemas"]["ModelList"]
    check(models["example"], models)


@pytest.mark.slow
def test_schemathesis(net):
    """Random requests, well-formed and not: no answer but those of the document, and no failure of the service."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (tunable-ops[dev])")
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    pictures = [picture(9, 11, kind=kind) for kind in ("png", "jpg", "webp", "tiff")]
    for media_type in ("image/png", "image/jpeg", "image/webp", "image/tiff", "application/octet-stream"):
        schemathesis.openapi.media_type(media_type, st.sampled_from([*pictures, b"no picture"]))
    # a text that suits the document may still name a parameter that the model does not have
    left_out = [schemathesis.checks.positive_data_acceptance]
    tried = set()
    with serving({"small": net}) as client:
        schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
        for operation in (result.ok() for result in schema.get_all_operations()):
            modes = list(schemathesis.GenerationMode)
            for mode in modes if operation.path == "/v1/restore" else modes[:1]:  # the others have nothing to get wrong

                @given(case=operation.as_strategy(generation_mode=mode))
                @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
                def run(case):
                    tried.add((case.operation.path, case.meta.generation.mode.value))
                    case.call_and_validate(excluded_checks=left_out)

                run()
    others = {(path, "positive") for path in ("/v1/models", "/healthz", "/metrics")}
    assert tried == {("/v1/restore", "positive"), ("/v1/restore", "negative"), *others}
