"""Secrets in the Python SDK: put, list, delete. Nothing reads a value back."""

from collections.abc import Iterator

from roadless.service.client.client import Client
from roadless.service.contract.resources import Page
from roadless.service.contract.secrets import Secret


class Secrets:
    """The secrets of the project that the client's token opens."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def put(self, name: str, value: str) -> None:
        """Keep a value under this name, replacing an older one.

        Args:
            name: of the environment variable that ranks of jobs get, such as ``HF_TOKEN``.
            value: 4 characters to 32 KiB.

        Raises:
            ApiError: the service refused the name or the value, which it does not repeat.
        """
        self._client.request("PUT", f"/v1/secrets/{name}", json={"value": value})

    def list(self) -> Iterator[Secret]:
        """All secrets of the project by name, without values; pages are fetched as needed."""
        after: str | None = None
        while True:
            params = {"limit": 200, **({"after": after} if after else {})}
            response = self._client.request("GET", "/v1/secrets", params=params)
            page = Page[Secret].model_validate_json(response.content)
            yield from page.data
            if not page.has_more:
                return
            after = page.last_id

    def delete(self, name: str) -> None:
        """Delete a secret; an attempt that starts without it fails."""
        self._client.request("DELETE", f"/v1/secrets/{name}")
