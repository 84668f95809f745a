"""The secrets of a job in its ranks: in the environment, where libraries look for them.

They come after the process has started, so they are not in what ``/proc`` shows of it.
"""

import hashlib
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from pydantic import SecretStr

from service.contract.cluster import AttemptBrief
from worker.errors import SecretUnavailable
from worker.redaction import REDACTOR

#: What goes from the environment with a secret: variables of the node that say the same in another
#: way, some of which libraries would prefer or mix in.
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


def take(brief: AttemptBrief, *, data_cache: str) -> None:
    """Put the job's secrets into this process's environment, and keep them out of what it says.

    Before data and model are built, and before Hugging Face's libraries are imported, which look at
    the environment then. ``data_cache``: the node's folder for prepared data. Raises
    SecretUnavailable when one of them is not to be had.
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
    """Set the secrets in ``environ``, and take away what of the node's own would go before them.

    ``hub_cache``: where what a token of the hub opens is kept. The node's own folder of such files
    serves whoever names them.
    """
    for name in secrets:
        for other in _REPLACED.get(name, ()):
            environ.pop(other, None)
    for name, value in secrets.items():
        environ[name] = value.get_secret_value()
    if "HF_TOKEN" in secrets:
        environ["HF_HUB_CACHE"] = str(hub_cache)
        environ["HF_XET_CACHE"] = str(hub_cache / "xet")
