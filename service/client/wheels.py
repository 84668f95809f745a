"""Uploaded wheels in the Python SDK: upload, list, delete."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from roadless.service.client.client import Client, ClientError
from roadless.service.contract.resources import Page
from roadless.service.contract.uploads.wheels import MAX_WHEEL_BYTES, Wheel

#: The service checks a wheel and moves it to its store before it answers.
UPLOAD_SECONDS = 300.0


class Wheels:
    """The wheels of the project that the client's token opens."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def upload(self, path: Path) -> Wheel:
        """Upload a wheel; one that is there already, by name and content, is not duplicated.

        Args:
            path: the file, named as its specification asks.

        Raises:
            ClientError: the file is larger than a wheel may be.
            ApiError: the service refused.
        """
        size = path.stat().st_size
        if size > MAX_WHEEL_BYTES:
            raise ClientError(
                f"expected a wheel of at most {MAX_WHEEL_BYTES} bytes, saw {path} with {size}"
            )
        content = path.read_bytes()
        headers = {
            "X-Content-SHA256": hashlib.sha256(content).hexdigest(),
            "Content-Type": "application/octet-stream",
        }
        response = self._client.request(
            "PUT",
            f"/v1/wheels/{quote(path.name)}",
            content=content,
            headers=headers,
            timeout=UPLOAD_SECONDS,
        )
        return Wheel.model_validate_json(response.content)

    def get(self, wheel_id: str) -> Wheel:
        """One wheel."""
        response = self._client.request("GET", f"/v1/wheels/{wheel_id}")
        return Wheel.model_validate_json(response.content)

    def list(self) -> Iterator[Wheel]:
        """All wheels of the project, newest first; pages are fetched as they are needed."""
        after: str | None = None
        while True:
            params = {"limit": 200, **({"after": after} if after else {})}
            response = self._client.request("GET", "/v1/wheels", params=params)
            page = Page[Wheel].model_validate_json(response.content)
            yield from page.data
            if not page.has_more:
                return
            after = page.last_id

    def delete(self, wheel_id: str) -> None:
        """Delete it; refused while a job that has not ended uses it."""
        self._client.request("DELETE", f"/v1/wheels/{wheel_id}")
