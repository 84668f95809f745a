"""A description of a data set leads its library nowhere else: no folder, no host is looked at."""

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from data_cases import Node, csv_text
from datasets import data_files

from roadless.service.contract.states import Reason
from roadless.worker.data.records.described_files import kept_inside
from roadless.worker.errors import DataForbidden, JobFailed

ROWS = csv_text({"x": [1.0, 2.0, 3.0], "y": [0, 1, 0]})
HUB = "org/set"
AT = f"hf://datasets/{HUB}@c0ffee"


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[int, list[str]]]:
    """A server on this node, and what it is asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 - as the server calls it

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_port, asked
    server.shutdown()
    server.server_close()


def told(node: Node, **config: object) -> str:
    configs = [{"config_name": "default", **config}]
    node.write("set/README.md", f"---\nconfigs: {json.dumps(configs)}\n---\n")
    with pytest.raises(JobFailed) as caught:
        node.build({"kind": "huggingface", "path": str(node.root / "set"), "target": "y"})
    assert caught.value.reason is Reason.DATA_FORBIDDEN
    return str(caught.value)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {"data_files": "/OUTSIDE/*.csv"},
        {"data_files": "/OUTSIDE/secret.csv"},
        {"data_files": "../../outside/*.csv"},
        {"data_files": "link/*.csv"},
        {"data_files": "link/secret.csv"},
        {"data_files": [{"split": "train", "path": ["train.csv", "../../outside/s*"]}]},
        {"data_files": "file:///OUTSIDE/*.csv"},
        {"data_files": "zip://*.csv::/OUTSIDE/a.zip"},
        {"data_dir": "../../outside"},
        {"data_dir": "/OUTSIDE"},
    ],
    ids=str,
)
def test_a_description_tells_nothing_of_other_folders(node, tmp_path, config, exists):
    outside = tmp_path / "outside"
    if exists:
        outside.mkdir()
        (outside / "secret.csv").write_text(ROWS)
    node.write("set/train.csv", ROWS)
    (node.root / "set/link").symlink_to(outside)
    here = json.loads(json.dumps(config).replace("/OUTSIDE", str(outside)))
    said = told(node, **here)
    assert "to lie in it" in said
    asked_for = json.dumps(here)
    assert "secret" not in said or "secret" in asked_for


@pytest.mark.parametrize(
    "url", ["http://{}/a.csv", "http://{}/*.csv", "webhdfs://{}/a.csv", "zip://a::http://{}/a"]
)
def test_a_description_makes_no_request(node, site, url):
    port, asked = site
    node.write("set/train.csv", ROWS)
    assert "to lie in it" in told(node, data_files=url.format(f"127.0.0.1:{port}"))
    assert asked == []


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml", "dataset_infos.json"])
def test_a_description_that_is_a_link_out_of_the_folder_is_not_read(node, tmp_path, name):
    node.write("set/train.csv", ROWS)
    (tmp_path / "secret").write_text("---\nsecret: [\n---\n")
    (node.root / "set" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(JobFailed, match="to lie in it") as caught:
        node.build({"kind": "huggingface", "path": str(node.root / "set"), "target": "y"})
    assert caught.value.reason is Reason.DATA_FORBIDDEN


@pytest.mark.parametrize(
    "pattern", ["sub/*.csv", "sub/../sub/a.csv", "{}/sub/*.csv", "**/*.csv", "*/a.csv"]
)
def test_files_in_the_folder_are_found_however_they_are_named(node, pattern):
    node.write("set/sub/a.csv", ROWS)
    folder = str(node.root / "set")
    with kept_inside(folder):
        found = data_files.resolve_pattern(pattern.format(folder), folder)
    assert [os.path.normpath(file) for file in found] == [f"{folder}/sub/a.csv"]


@pytest.mark.parametrize(
    ("pattern", "is_allowed"),
    [
        ("data/*.csv", True),
        (f"{AT}/data/*.csv", True),
        ("../../other/set/a.csv", False),
        ("/etc/*", False),
        ("hf://datasets/org/other/a.csv", False),
        (f"hf://datasets/{HUB}s@c0ffee/a.csv", False),
        ("http://169.254.169.254/latest", False),
        (f"zip://a::{AT}/a.zip", False),
        (f"{AT}/a.zip::http://127.0.0.1/", False),
    ],
)
def test_on_the_hub_only_files_of_the_repository_are_looked_for(monkeypatch, pattern, is_allowed):
    asked: list[str] = []

    def resolving(pattern: str, base_path: str, **options: object) -> list[str]:
        asked.append(pattern)
        return [f"{base_path}/data/a.csv"]

    monkeypatch.setattr(data_files, "resolve_pattern", resolving)
    with kept_inside(HUB):
        if is_allowed:
            assert data_files.resolve_pattern(pattern, AT) == [f"{AT}/data/a.csv"]
        else:
            with pytest.raises(DataForbidden, match="to lie in it"):
                data_files.resolve_pattern(pattern, AT)
    assert asked == [pattern] * is_allowed
    assert data_files.resolve_pattern is resolving


def test_what_the_library_finds_elsewhere_is_refused_before_it_is_opened(
    monkeypatch, tmp_path: Path
):
    monkeypatch.setattr(data_files, "resolve_pattern", lambda *_: ["/etc/passwd"])
    with kept_inside(str(tmp_path)), pytest.raises(DataForbidden, match="saw /etc/passwd"):
        data_files.resolve_pattern("*", str(tmp_path))
