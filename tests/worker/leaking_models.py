"""Factories as careless as some libraries: they tell the credential that they were refused with."""

import base64
import logging
import os
import sys
from urllib.parse import quote

from torch import nn


class Unauthorised(Exception):
    """Carries the whole request, as exceptions of HTTP clients do."""


def refused_at_length(**shape: object) -> nn.Module:
    raise Unauthorised(os.environ["HF_TOKEN"] * 300)


def refused(**shape: object) -> nn.Module:
    token = os.environ["HF_TOKEN"]
    logging.getLogger("careless").warning("asking with %s", {"Authorization": f"Bearer {token}"})
    print(f"token is {token}")
    print(token, file=sys.stderr)
    basic = base64.b64encode(f"user:{token}".encode()).decode()
    raise Unauthorised(f"401 for https://user:{quote(token, safe='')}@host/ with Basic {basic}")
