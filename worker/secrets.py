"""The secrets of a job in its ranks: in the environment, but in nothing that they write.

They are set after the process has started, so ``/proc`` does not show them. The environment is
where libraries look for them; a :class:`Redactor` keeps them out of events and logs.
"""

import base64
import contextlib
import hashlib
import html
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus

from pydantic import SecretStr

from roadless.service.contract.reports.cluster import AttemptBrief
from roadless.service.contract.reports.events import Event, Failed, Notice, Started
from roadless.worker.errors import SecretUnavailable

HIDDEN = "***"
#: A shorter line of a long value, such as a bracket, is no secret by itself; nor is a shorter text
#: in a JSON value, such as its type.
_MIN_LINE_LENGTH = 8
_MIN_TEXT_LENGTH = 20
_URL_SAFE = str.maketrans("+/", "-_")
#: What a secret removes from the environment: variables of the node with the same purpose, which
#: libraries might prefer or mix in.
_REPLACED: Mapping[str, tuple[str, ...]] = {
    "AWS_ACCESS_KEY_ID": (
        "AWS_SESSION_TOKEN",
        "AWS_TOKEN",
        "AWS_SKIP_SIGNATURE",
        "AWS_PROFILE",
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    ),
    "AWS_REGION": ("AWS_DEFAULT_REGION",),
    "GOOGLE_SERVICE_ACCOUNT_KEY": (
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SKIP_SIGNATURE",
    ),
    "HF_TOKEN": ("HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"),
}


class Redactor:
    """Replaces values, in any of their forms, with ``***``. Any thread may use it."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._forms: tuple[str, ...] = ()
        self.learn(values)

    def learn(self, values: Iterable[str]) -> None:
        """From now on, hide these values too."""
        forms = {form for value in values for form in forms_of(value)}
        forms = {form for form in forms | set(self._forms) if len(form) > len(HIDDEN)}
        # Longest first: of two with a common prefix, the shorter would leave part of the longer.
        self._forms = tuple(sorted(forms, key=lambda form: (-len(form), form)))

    def redact(self, text: str) -> str:
        """Return the text without the values."""
        # Repeat: the result may contain a value again, "a***" in "aa***". Each round is shorter.
        while (shorter := self._redact_once(text)) != text:
            text = shorter
        return text

    def _redact_once(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, HIDDEN)
        return text

    def redact_event(self, event: Event) -> Event:
        """Return the event with its free texts redacted."""
        match event:
            case Failed() | Notice():
                return event.model_copy(update={"message": self.redact(event.message)})
            case Started():
                told = {name: self.redact(text) for name, text in event.provenance.items()}
                return event.model_copy(update={"provenance": told})
            case _:
                return event


class RedactedStream:
    """A text stream that redacts each piece written to it; otherwise it behaves like the stream.

    What a full disk has no room for is not in the log: a model that prints trains on.
    """

    def __init__(self, stream: TextIO, redactor: Redactor) -> None:
        self._stream = stream
        self._redactor = redactor

    def write(self, text: str) -> int:
        """Write the text without the values; return how much of ``text`` was taken: all."""
        with contextlib.suppress(OSError):
            self._stream.write(self._redactor.redact(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


#: One per process, as are its environment and its streams.
REDACTOR = Redactor()


def install_secrets(brief: AttemptBrief, *, data_cache: str) -> None:
    """Put the job's secrets into this process's environment, and keep them out of its output.

    Call it before data and model are built, and before Hugging Face's libraries are imported, which
    read the environment at import. ``data_cache``: the node's folder for prepared data. Raises
    SecretUnavailable when one of the secrets is not available.
    """
    REDACTOR.learn(value.get_secret_value() for value in brief.secrets.values())
    if brief.secret_faults:
        raise SecretUnavailable(
            f"expected the secrets that the job names, saw: {'; '.join(brief.secret_faults)}"
        )
    owner = hashlib.sha256(brief.spec.project.encode()).hexdigest()
    folder = Path(data_cache).expanduser().with_name("hub-cache") / owner
    set_environment(os.environ, brief.secrets, hub_cache=folder)


def set_environment(
    environ: MutableMapping[str, str], secrets: Mapping[str, SecretStr], *, hub_cache: Path
) -> None:
    """Set the secrets in ``environ``, and remove the node's variables that would override them.

    ``hub_cache``: where files fetched with the job's hub token are kept. The node's own folder
    for such files would serve any job that names them.
    """
    for name in secrets:
        for other in _REPLACED.get(name, ()):
            environ.pop(other, None)
    for name, value in secrets.items():
        environ[name] = value.get_secret_value()
    if "HF_TOKEN" in secrets:
        environ["HF_HUB_CACHE"] = str(hub_cache)
        environ["HF_XET_CACHE"] = str(hub_cache / "xet")


def redact_streams() -> None:
    """Send standard output and error of this process through :data:`REDACTOR` from now on."""
    for name in ("stdout", "stderr"):
        setattr(sys, name, cast(TextIO, RedactedStream(getattr(sys, name), REDACTOR)))


def forms_of(value: str) -> set[str]:
    """Return the forms of a value and its parts: plain, escaped in various ways, in base64."""
    parts = {value, value.strip(), *_texts_of(value)}
    parts |= {line for part in parts for line in _lines_of(part)}
    return parts | {form for part in parts for form in _encoded(part)}


def _lines_of(text: str) -> Iterator[str]:
    """The lines as a traceback shows them, without indentation."""
    lines = [line.strip() for line in text.splitlines()]
    return (line for line in lines if len(lines) > 1 and len(line) >= _MIN_LINE_LENGTH)


def _texts_of(value: str) -> Iterator[str]:
    """What a library finds in a value that is JSON, such as the private key of an account."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return iter(())
    texts = found.values() if isinstance(found, dict) else ()
    return (text for text in texts if isinstance(text, str) and len(text) >= _MIN_TEXT_LENGTH)


def _encoded(text: str) -> Iterator[str]:
    for quoted in (quote(text, safe=""), quote(text), quote_plus(text)):
        yield quoted
        yield re.sub("%..", lambda code: code[0].lower(), quoted)
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield repr(text)[1:-1]
    yield repr(text.encode())[2:-1]
    yield html.escape(text)
    yield from _base64_within(text.encode())


def _base64_within(content: bytes) -> Iterator[str]:
    """The base64 of the content wherever it is within a longer one, as in a user's password.

    At each of the three offsets the first and last characters also depend on the neighbours and
    are left out.
    """
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + content).decode().rstrip("=")
        first = (8 * offset + 5) // 6
        last = 8 * (offset + len(content)) // 6
        yield encoded[first:last]
        yield encoded[first:last].translate(_URL_SAFE)
