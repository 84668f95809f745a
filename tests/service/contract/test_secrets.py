"""What a secret may be called, what it may hold, and what a job may name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.secrets import MAX_SECRETS_OF_JOB, NewSecret, SecretName, check_value

NAME = TypeAdapter(SecretName)

CREDENTIALS = (
    "HF_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "WANDB_API_KEY",
    "DB_PASSWORD",
    "TOKEN",
    "SECRET_DATABASE_URL",
    "MY_SECRET",
)
#: Each would send a rank elsewhere, or into code that nobody opened to the job's owner.
REFUSED = (
    *("PATH", "HOME", "LD_PRELOAD", "LD_AUDIT_KEY", "PYTHONPATH", "PYTHONSTARTUP", "BASH_ENV"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NCCL_SOCKET_IFNAME", "MASTER_ADDR"),
    *("ROADLESS_TOKEN", "ROADLESS_SECRETS_KEY", "RAY_AUTH_TOKEN", "DATABASE_URL"),
    *("AWS_ENDPOINT_URL", "AWS_CONFIG_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_PROFILE"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "HF_ENDPOINT", "HF_HOME"),
    *("HF_HUB_DISABLE_IMPLICIT_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTPS_PROXY", "SSL_CERT_FILE"),
    *("", "hf_token", "HF-TOKEN", "1_TOKEN", "A" * 61 + "_KEY", "A\n_KEY", "Ä_KEY", "TOKENIZER"),
)


@pytest.mark.parametrize("name", CREDENTIALS)
def test_names_of_credentials_are_taken(name):
    assert NAME.validate_python(name) == name


@pytest.mark.parametrize("name", REFUSED)
def test_other_variables_are_refused_with_what_was_expected(name):
    with pytest.raises(ValidationError, match="expected"):
        NAME.validate_python(name)


@given(st.text(max_size=70))
def test_no_text_is_a_name_unless_it_can_name_a_variable(text):
    try:
        NAME.validate_python(text)
    except ValidationError:
        return
    assert text.isascii()
    assert text.replace("_", "A").isalnum()
    assert len(text) <= 64


def test_a_value_given_for_a_name_is_not_repeated():
    with pytest.raises(ValidationError) as caught:
        NAME.validate_python("hf_theValueItself")
    assert "hf_theValueItself" not in caught.value.errors()[0]["msg"]


def test_a_region_can_name_a_region_only():
    """It becomes a part of a host's name."""
    check_value("AWS_REGION", "eu-central-1")
    for value in ("x@internal:80/", "a.b.c.d", "eu_1x", "EU-WEST"):
        with pytest.raises(ValueError, match="a region") as caught:
            check_value("AWS_REGION", value)
        assert value not in str(caught.value)


def test_a_value_is_not_shown():
    secret = NewSecret(value="a-secret-value")
    assert "a-secret-value" not in f"{secret!r} {secret} {secret.model_dump_json()}"


def test_only_the_brief_of_ranks_tells_values_on_the_wire(digits_spec):
    brief = AttemptBrief(
        attempt_id="a", job_id="j", fence=1, spec=digits_spec, secrets={"A_KEY": "a-secret-value"}
    )
    assert "a-secret-value" not in f"{brief!r} {brief} {brief.model_dump()}"
    again = AttemptBrief.model_validate_json(brief.model_dump_json())
    assert again.secrets["A_KEY"].get_secret_value() == "a-secret-value"


def test_a_brief_of_an_older_service_has_no_secrets(digits_spec):
    told = {"attempt_id": "a", "job_id": "j", "fence": 1, "spec": digits_spec}
    assert AttemptBrief.model_validate(told).secrets == {}


# ---- what a job names ---------------------------------------------------------------------------


def fault(spec) -> str:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(spec)
    return str(caught.value)


def test_a_job_names_each_secret_once_and_not_too_many(digits_spec):
    assert JobSpec.model_validate(digits_spec).secrets == ()
    assert "saw one twice" in fault({**digits_spec, "secrets": ["A_KEY", "A_KEY"]})
    many = [f"A{index}_KEY" for index in range(MAX_SECRETS_OF_JOB + 1)]
    assert JobSpec.model_validate({**digits_spec, "secrets": many[:-1]}).secrets[-1] == many[-2]
    assert "at most 32" in fault({**digits_spec, "secrets": many})


@pytest.mark.parametrize(
    "written", [{"A_KEY": "a-secret-value"}, [{"A_KEY": "a-secret-value"}], "a-secret-value"]
)
def test_values_in_the_place_of_names_are_not_repeated(digits_spec, written):
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({**digits_spec, "secrets": written})
    (error,) = caught.value.errors()
    assert error["msg"] == "Value error, expected a list of names, saw something else"


def test_credentials_for_s3_are_whole(digits_spec):
    """Half of the job's and half of the node's would be neither's."""
    both = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    assert JobSpec.model_validate({**digits_spec, "secrets": both})
    for names in (both[:1], both[1:], ["AWS_SESSION_TOKEN"], ["AWS_REGION"]):
        assert "along with the other AWS_" in fault({**digits_spec, "secrets": names})


FILES = {"kind": "files", "format": "csv", "path": "https://example.org/a.csv", "target": "y"}


def test_a_bearer_is_one_of_the_jobs_secrets(digits_spec):
    data = {**FILES, "bearer": "A_TOKEN"}
    spec = {**digits_spec, "model": {"kind": "preset", "name": "mlp"}, "data": data}
    assert JobSpec.model_validate({**spec, "secrets": ["A_TOKEN"]})
    assert "expected A_TOKEN" in fault({**spec, "secrets": ["B_TOKEN"]})
    assert "expected A_TOKEN" in fault({**spec, "secrets": []})
    other = {"sets": [{"name": "other", "data": {**FILES, "bearer": "B_TOKEN"}}]}
    assert "expected B_TOKEN" in fault({**spec, "secrets": ["A_TOKEN"], "evaluation": other})
    assert JobSpec.model_validate({**spec, "secrets": ["A_TOKEN", "B_TOKEN"], "evaluation": other})
