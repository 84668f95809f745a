"""Conditional requests (RFC 9110, section 13): whether what a client knows is what there is.

Tags are compared weakly, in If-Match too: a proxy that compresses answers makes the tags that it
passes on weak (nginx does), and a version or a hash is as good with the mark ``W/`` before it.
"""

import re
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Header, Request

from roadless.service.errors import PreconditionFailed

_TAG = re.compile(r'(?:W/)?("[^"]*")')

_IfMatch = Annotated[
    str | None, Header(alias="If-Match", description="tags, or *; 412 for any other version")
]
_IfNoneMatch = Annotated[
    str | None, Header(alias="If-None-Match", description="tags, or *; 304 for these versions")
]

_Range = Annotated[str | None, Header(alias="Range", description="one range of bytes")]
_IfRange = Annotated[str | None, Header(alias="If-Range", description="the tag of the version")]


async def _if_match(_value: _IfMatch = None) -> None:
    """For the description: headers are read from the request, as they may come in several lines."""


async def _if_none_match(_value: _IfNoneMatch = None) -> None:
    """As above."""


async def _range(_range: _Range = None, _if_range: _IfRange = None) -> None:
    """As above."""


#: ``dependencies`` of routes that honour these headers.
IF_MATCH, IF_NONE_MATCH, RANGE = Depends(_if_match), Depends(_if_none_match), Depends(_range)


def listed(values: Sequence[str], etag: str) -> bool:
    """Whether a header names the tag, among others, weakly, or all tags with ``*``.

    ``values``: of each line of the header.
    """
    text = ",".join(values)
    return text.strip() == "*" or etag in _TAG.findall(text)


def is_known(request: Request, etag: str) -> bool:
    """Whether the client has what ``etag`` names, so that 304 answers it.

    Raises PreconditionFailed if it asks for another version with If-Match.
    """
    require_match(request, etag)
    return listed(request.headers.getlist("if-none-match"), etag)


def require_match(request: Request, etag: str) -> None:
    """Raise PreconditionFailed if the request has If-Match, and it does not name ``etag``."""
    values = request.headers.getlist("if-match")
    if values and not listed(values, etag):
        raise PreconditionFailed(
            f"expected {etag} in If-Match, saw {', '.join(values)[:200]}; read the current version "
            "and try again"
        )
