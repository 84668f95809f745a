"""The cipher as a route asks for it."""

from typing import Annotated

from fastapi import Depends, Request

from service.secrets.cipher import Cipher


async def _cipher(request: Request) -> Cipher:
    cipher: Cipher = request.app.state.cipher
    return cipher


SecretCipher = Annotated[Cipher, Depends(_cipher)]
