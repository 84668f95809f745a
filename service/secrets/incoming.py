"""What routes of secrets depend on: the cipher, and the secret in a request.

The secret is read here and not by the framework, whose errors repeat what they saw.
"""

from typing import Annotated

from fastapi import Depends, Request
from pydantic import ValidationError

from roadless.service.contract.resources import ProblemError
from roadless.service.contract.secrets import NewSecret
from roadless.service.errors import Invalid, TooLarge
from roadless.service.http.dependencies import state_of
from roadless.service.secrets.cipher import Cipher

#: A value of the longest kind, each byte of it written as six characters, and the rest of the JSON.
_MAX_BODY_BYTES = 256 * 2**10


async def _cipher(request: Request) -> Cipher:
    return state_of(request).part(Cipher)


async def _new_secret(request: Request) -> NewSecret:
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > _MAX_BODY_BYTES:
            raise TooLarge(f"expected at most {_MAX_BODY_BYTES} bytes, saw more")
    try:
        return NewSecret.model_validate_json(bytes(body))
    except ValidationError as error:
        fault = _fault(error)
    raise Invalid(f"{fault.pointer or 'body'}: {fault.message}", errors=(fault,))


def _fault(error: ValidationError) -> ProblemError:
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if found["type"] == "value_error":  # raised by ourselves, never with the value
        message = found["msg"].removeprefix("Value error, ")
        return ProblemError(pointer="/value", message=message)
    message = 'expected JSON with one text, {"value": "..."}, saw something else'
    return ProblemError(pointer="", message=message)


SecretCipher = Annotated[Cipher, Depends(_cipher)]
#: The body of a PUT, whose value no answer and no log repeats.
IncomingSecret = Annotated[NewSecret, Depends(_new_secret)]
