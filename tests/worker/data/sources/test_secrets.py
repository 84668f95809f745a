"""Data that a job's own credentials open: read without the operator, and given to nobody else."""

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from data_cases import Node, csv_text
from guarded_site import Site, guarded_site
from s3_guarded import REGION, Guarded, guarded_s3

from roadless.service.contract.states import Reason
from roadless.worker.data.sources import http_files, object_files
from roadless.worker.errors import JobFailed

AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
ROWS = csv_text({"x": [float(i) for i in range(50)], "y": [i % 2 for i in range(50)]})


@pytest.fixture(scope="module")
def store() -> Iterator[Guarded]:
    with guarded_s3() as store:
        yield store


@pytest.fixture
def node(tmp_path: Path, store: Guarded, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node whose operator has named the store, lists no bucket of it and has keys of its own."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", store.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", store.secret_key)
    return Node.at(tmp_path)


@pytest.fixture
def url(store: Guarded) -> str:
    return store.put(f"data-{uuid.uuid4().hex}", "a.csv", ROWS.encode())


def load(node: Node, path: str, **fields):
    return node.build({"format": "csv", "path": path, "target": "y", **fields})


def fault(node: Node, path: str, reason: Reason, **fields) -> str:
    with pytest.raises(JobFailed) as caught:
        load(node, path, **fields)
    assert caught.value.reason is reason
    return str(caught.value)


# ---- stores -------------------------------------------------------------------------------------


def test_a_job_with_keys_of_its_own_reads_what_the_operator_does_not_list(node, url):
    """Set while the process runs, as a rank does, and the store checks their signatures."""
    data = load(node.allowing(project="p", secrets=AWS), url)
    assert data.num_train + data.num_eval == 50


def test_a_job_without_keys_does_not_read_with_those_of_the_node(node, url):
    for secrets in ((), ("HF_TOKEN",), AWS[:1]):
        said = fault(node.allowing(project="p", secrets=secrets), url, Reason.DATA_FORBIDDEN)
        assert "credentials for it in the job's secrets" in said


@pytest.mark.parametrize("key", ["a.csv", "*.csv"])
def test_keys_that_the_store_refuses_fail_the_job_once(node, url, monkeypatch, key):
    """Trying again would not help, whether the object or the list is refused."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-wrong-secret-key")
    own = node.allowing(project="p", secrets=AWS)
    said = fault(own, url.replace("a.csv", key), Reason.DATA_UNREADABLE)
    assert "403" in said
    assert "the-wrong-secret-key" not in said


@pytest.mark.parametrize(
    "path", ["s3://host:80/a.csv", "s3://a%2fb/a.csv", "s3://-a/a.csv", "s3://UPPER/a.csv"]
)
def test_a_bucket_that_is_no_name_leads_nowhere_with_any_keys(node, path):
    fault(node.allowing(project="p", secrets=AWS), path, Reason.DATA_FORBIDDEN)


@pytest.mark.parametrize(
    "key",
    [
        {"client_email": "a", "private_key": "b", "gcs_base_url": "http://169.254.169.254"},
        {"disable_oauth": True},
        ["no", "object", "gcs_base_url"],
        7,
        None,
    ],
)
def test_a_google_key_that_names_another_server_is_refused(node, monkeypatch, key):
    text = "/etc/node.json" if key is None else json.dumps(key)
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", text)
    own = node.allowing(project="p", secrets=("GOOGLE_SERVICE_ACCOUNT_KEY",))
    said = fault(own, "gs://bucket/a.csv", Reason.DATA_FORBIDDEN)
    assert "gcs_base_url" in said
    assert "169.254" not in said


# ---- the node's cache ---------------------------------------------------------------------------


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of objects whose content was fetched."""
    fetched: list[str] = []
    get = object_files.obstore.get

    def counting(store, path, **options):
        fetched.append(path)
        return get(store, path, **options)

    monkeypatch.setattr(object_files.obstore, "get", counting)
    return fetched


def test_what_one_project_has_read_with_its_keys_another_reads_itself(node, url, fetches):
    """Who may list an object, and so knows its identity, may not read it yet."""
    for project, expected in (("p", 1), ("p", 1), ("q", 2), ("q", 2), ("p", 2)):
        load(node.allowing(project=project, secrets=AWS), url)
        assert len(fetches) == expected


def test_a_job_without_keys_is_not_served_what_keys_have_opened(node, url, fetches):
    listed = node.allowing(urls=(url.rpartition("/")[0],), project="p")
    load(listed.allowing(secrets=AWS), url)
    load(listed, url)
    assert len(fetches) == 2


def test_what_the_nodes_own_keys_open_is_shared_by_projects_as_before(node, url, fetches):
    for project in ("p", "q"):
        load(node.allowing(urls=(url.rpartition("/")[0],), project=project), url)
    assert len(fetches) == 1


def test_another_secret_of_the_same_project_finds_what_was_prepared(node, url, fetches):
    for secrets in (AWS, (*AWS, "OTHER_KEY")):
        load(node.allowing(project="p", secrets=secrets), url)
    assert len(fetches) == 1


# ---- http ---------------------------------------------------------------------------------------


@pytest.fixture
def serve() -> Iterator[Callable[[], Site]]:
    """Starts a site that a token opens, but strangers as well."""
    with ExitStack() as sites:
        yield lambda: sites.enter_context(
            guarded_site(ROWS.encode(), token="the-token", is_open=True)
        )


@pytest.fixture
def with_token(node: Node, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setenv("SITE_TOKEN", "the-token\n")
    monkeypatch.setattr(http_files, "_PAUSES_SECONDS", ())
    return node.allowing(project="p", secrets=("SITE_TOKEN",))


def test_a_bearer_is_sent_with_every_request_for_the_file(with_token, serve):
    site = serve()
    load(with_token.allowing(urls=(site.url,)), f"{site.url}/a.csv", bearer="SITE_TOKEN")
    assert site.heard == ["Bearer the-token"] * 2


def test_a_redirect_elsewhere_takes_no_bearer_along(with_token, serve):
    first, second = serve(), serve()
    node = with_token.allowing(urls=(first.url, second.url))
    load(node, f"{first.url}/to/{second.url}/a.csv", bearer="SITE_TOKEN")
    assert first.heard == ["Bearer the-token"] * 2
    assert second.heard == [None] * 2


def test_a_bearer_that_the_site_refuses_fails_the_job_once(with_token, serve, monkeypatch):
    site = serve()
    monkeypatch.setenv("SITE_TOKEN", "another")
    node = with_token.allowing(urls=(site.url,))
    said = fault(node, f"{site.url}/a.csv", Reason.DATA_UNREADABLE, bearer="SITE_TOKEN")
    assert "401" in said


def test_no_bearer_goes_over_plain_http_unless_the_operator_lists_the_site(with_token, serve):
    """Whoever listens on the way would have it."""
    with pytest.raises(JobFailed, match="expected https for the secret SITE_TOKEN") as caught:
        http_files.find("http://1.1.1.1/a.csv", sources=with_token.sources, bearer="SITE_TOKEN")
    assert caught.value.reason is Reason.DATA_FORBIDDEN


def test_a_variable_of_the_node_is_no_bearer(with_token, serve, monkeypatch):
    site = serve()
    monkeypatch.setenv("NODE_TOKEN", "of the operator")
    node = with_token.allowing(urls=(site.url,))
    fault(node, f"{site.url}/a.csv", Reason.DATA_FORBIDDEN, bearer="NODE_TOKEN")
    assert site.heard == []


def test_a_bearer_with_a_line_break_in_it_is_no_second_header(with_token, serve):
    site = serve()
    os.environ["SITE_TOKEN"] = "the-token\r\nX-Other: 1"
    node = with_token.allowing(urls=(site.url,))
    said = fault(node, f"{site.url}/a.csv", Reason.DATA_UNREADABLE, bearer="SITE_TOKEN")
    assert "the-token" not in said
    assert site.heard == []
