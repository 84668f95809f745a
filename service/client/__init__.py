"""The Python SDK: the REST interface as methods."""

from roadless.service.client.client import (
    ApiError,
    Client,
    ClientError,
    Corrupt,
    NotJson,
    Unreachable,
    WaitTimeout,
    find_token,
)
from roadless.service.client.datasets import Datasets, part_size, require_names
from roadless.service.client.secrets import Secrets
from roadless.service.client.wheels import Wheels

__all__ = [
    "ApiError",
    "Client",
    "ClientError",
    "Corrupt",
    "Datasets",
    "NotJson",
    "Secrets",
    "Unreachable",
    "WaitTimeout",
    "Wheels",
    "find_token",
    "part_size",
    "require_names",
]
