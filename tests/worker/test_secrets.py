"""Secrets in a rank: where libraries look for them, with nothing of the node's mixed in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from training_bench import make_brief

from roadless.service.contract.states import Reason
from roadless.worker.errors import SecretUnavailable
from roadless.worker.secrets import REDACTOR, install_secrets, set_environment

NODE = {
    "PATH": "/bin",
    "AWS_ENDPOINT_URL": "http://store:9000",
    "AWS_ACCESS_KEY_ID": "node",
    "AWS_SECRET_ACCESS_KEY": "node",
    "AWS_SESSION_TOKEN": "node",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.2/",
    "AWS_REGION": "node",
    "GOOGLE_APPLICATION_CREDENTIALS": "/etc/node.json",
    "HUGGING_FACE_HUB_TOKEN": "node",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_CACHE": "/node/hub",
}


def after(*names: str) -> dict[str, str]:
    environ = dict(NODE)
    secrets = {name: SecretStr("own") for name in names}
    set_environment(environ, secrets, hub_cache=Path("/cache/of-project"))
    return environ


def test_the_jobs_credentials_for_a_store_replace_the_nodes_and_keep_its_address():
    seen = after("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert seen["AWS_ACCESS_KEY_ID"] == seen["AWS_SECRET_ACCESS_KEY"] == "own"
    assert "AWS_SESSION_TOKEN" not in seen
    assert "AWS_CONTAINER_CREDENTIALS_FULL_URI" not in seen
    assert seen["AWS_ENDPOINT_URL"] == NODE["AWS_ENDPOINT_URL"]
    assert seen["AWS_REGION"] == "node"


def test_a_session_of_the_jobs_own_stays():
    names = ("AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert after(*names)["AWS_SESSION_TOKEN"] == "own"


def test_what_a_token_of_the_hub_opens_is_kept_apart_from_what_others_are_given():
    seen = after("HF_TOKEN")
    assert seen["HF_TOKEN"] == "own"
    assert seen["HF_HUB_CACHE"] == "/cache/of-project"
    assert "HF_HUB_DISABLE_IMPLICIT_TOKEN" not in seen
    assert "HUGGING_FACE_HUB_TOKEN" not in seen


def test_a_key_of_a_google_account_takes_the_place_of_the_nodes_file():
    assert "GOOGLE_APPLICATION_CREDENTIALS" not in after("GOOGLE_SERVICE_ACCOUNT_KEY")


def test_another_secret_changes_nothing_else():
    assert after("MY_KEY") == NODE | {"MY_KEY": "own"}
    assert after() == NODE


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is set in a test goes with it."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_secrets_are_hidden_from_then_on(environment, tmp_path):
    brief = make_brief().model_copy(update={"secrets": {"MY_KEY": SecretStr("taken-by-a-rank")}})
    install_secrets(brief, data_cache=str(tmp_path))
    assert os.environ["MY_KEY"] == "taken-by-a-rank"
    assert REDACTOR.redact("it is taken-by-a-rank") == "it is ***"


def test_a_secret_that_is_not_to_be_had_ends_the_job_and_is_named(environment, tmp_path):
    faults = ["MY_KEY was deleted; put it again"]
    brief = make_brief().model_copy(update={"secret_faults": faults})
    with pytest.raises(SecretUnavailable, match="MY_KEY was deleted; put it again") as caught:
        install_secrets(brief, data_cache=str(tmp_path))
    assert caught.value.reason is Reason.SECRET_UNAVAILABLE


PROGRAM = """
import sys
from pathlib import Path
from pydantic import SecretStr
import roadless.worker.rank.main
import os
from roadless.worker.secrets import set_environment
assert not [name for name in sys.modules if name.startswith(("huggingface_hub", "datasets"))]
set_environment(os.environ, {"HF_TOKEN": SecretStr("hf_ownToken")}, hub_cache=Path("/own/hub"))
import huggingface_hub
print(huggingface_hub.get_token(), huggingface_hub.constants.HF_HUB_CACHE)
print("hf_ownToken" in Path("/proc/self/environ").read_text())
"""


def test_the_hubs_library_finds_token_and_folder_as_a_rank_sets_them():
    """A rank has not imported it by then; and the kernel's record of its start stays without."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HF_TOKEN": "hf_ofTheNode"},
    )
    assert done.stdout.splitlines() == ["hf_ownToken /own/hub", "False"]
