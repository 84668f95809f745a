"""What of an operator's environment reaches Ray's processes and ranks: what is named, no more."""

import pytest

from roadless.service.contract.environment import rank_environment, ray_environment

OPERATORS = {
    "DATABASE_URL": "postgresql://roadless:hunter2@db/roadless",
    "PGPASSWORD": "hunter2",
    "ROADLESS_SECRETS_KEY": "k",
    "ROADLESS_TOKEN": "rl_user",
    "ROADLESS_RUNNER_TOKEN": "rl_runner",
    "ROADLESS_HOME": "/srv/roadless",
    "RAY_AUTH_TOKEN": "t",
    "RAY_ADDRESS": "x:1",
    "GITHUB_TOKEN": "g",
    "SOME_LICENCE": "l",
}
CREDENTIALS = {
    "AWS_SECRET_ACCESS_KEY": "s",
    "AWS_PROFILE": "p",
    "GOOGLE_APPLICATION_CREDENTIALS": "/g.json",
    "HF_TOKEN": "hf_x",
    "https_proxy": "http://user:pass@proxy",
}
PLAIN = {
    "PATH": "/bin",
    "LC_ALL": "C",
    "PYTHONPATH": "/own",
    "CUDA_VISIBLE_DEVICES": "1",
    "NCCL_SOCKET_IFNAME": "eth0",
    "OMP_NUM_THREADS": "2",
    "HF_HOME": "/models",
    "AWS_ENDPOINT_URL": "http://minio",
}


@pytest.mark.parametrize("selected", [ray_environment, rank_environment])
def test_what_nobody_has_named_stays_behind(selected):
    assert selected(OPERATORS) == {}
    assert selected(OPERATORS | PLAIN) == PLAIN


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ({"ROADLESS_DATA_URLS": "https://a s3://data/"}, {"AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"}),
        ({"ROADLESS_DATA_URLS": "gs://data"}, {"GOOGLE_APPLICATION_CREDENTIALS"}),
        ({"ROADLESS_ALLOW_HUB": "1"}, {"HF_TOKEN", "https_proxy"}),
        ({"ROADLESS_ALLOW_HUB": "0", "ROADLESS_DATA_URLS": "https://a"}, set()),
    ],
)
def test_credentials_reach_ray_only_where_jobs_may_read_with_them(setting, names):
    assert set(ray_environment(CREDENTIALS | setting)) == names


def test_ranks_have_the_credentials_of_their_node_and_the_mark_of_their_stack():
    node = CREDENTIALS | {"ROADLESS_STACK": "Ray head@/home"}
    assert rank_environment(node) == node


@pytest.mark.parametrize("selected", [ray_environment, rank_environment])
def test_the_operator_may_name_more(selected):
    named = {"SOME_LICENCE": "l", "ROADLESS_PASS_ENVIRONMENT": "SOME_LICENCE, OTHER"}
    assert selected(OPERATORS | named)["SOME_LICENCE"] == "l"
    assert "PGPASSWORD" not in selected(OPERATORS | named)
    assert rank_environment(ray_environment(named)) == {"SOME_LICENCE": "l"}
