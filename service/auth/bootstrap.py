"""The first start: a user token and a runner token, in files that only their owner reads."""

import os
from pathlib import Path

from roadless.service.auth import store
from roadless.service.auth.tokens import Audience, mint
from roadless.service.db.session import Database

#: Token name -> (audience, file in the home folder).
FIRST_TOKENS = {
    "first-user": (Audience.USER, "user.token"),
    "first-runner": (Audience.RUNNER, "runner.token"),
}


def make_first_tokens(db: Database, home: Path) -> dict[Audience, Path]:
    """Create the first tokens that the database does not know yet; return the files written.

    The file is written before the hash is committed: a crash in between leaves a file that opens
    nothing and is overwritten by the next start.
    """
    written = {}
    for name, (audience, filename) in FIRST_TOKENS.items():
        with db.write() as session:
            if store.has_token(session, name):
                continue
            token = mint(audience)
            _write_secret(home / filename, token)
            store.insert_token(session, token, name=name, audience=audience)
        written[audience] = home / filename
    return written


def _write_secret(path: Path, secret: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
