"""Which variables of an operator's environment reach the processes that train.

One shell may start both the service, which knows the database's password and the key of secrets,
and the nodes, where users' code runs. So nothing is passed on but what is named here, or by the
operator.
"""

import re
from collections.abc import Iterable, Mapping

#: Marks the processes of one ``roadless up``: the next one finds what a killed one has left.
STACK_VARIABLE = "ROADLESS_STACK"
#: Names, separated by commas, that the operator adds to those below.
PASS_VARIABLE = "ROADLESS_PASS_ENVIRONMENT"

_NAMES = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "TMPDIR"),
        *("HOSTNAME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"),
        *("AWS_DEFAULT_REGION", "AWS_ALLOW_HTTP", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"),
        *("AWS_SKIP_SIGNATURE", "AWS_CA_BUNDLE", "AWS_EC2_METADATA_DISABLED"),
    )
)
#: Of Python, of the libraries that compute, and of those that look for models.
_PREFIXES = (
    *("LC_", "XDG_", "PYTHON", "CUDA", "CUBLAS", "CUDNN", "NVIDIA_", "NCCL_", "GLOO_"),
    *("TORCH", "PYTORCH_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "NUMBA_"),
    *("TRITON_", "ROCM_", "ROCR_", "HIP_", "HSA_", "HF_", "TRANSFORMERS_", "TOKENIZERS_"),
)
_CREDENTIAL = re.compile(r"(\w+_)?(TOKEN|KEY|KEY_ID|SECRET|PASSWORD)")
#: What a node reads data and models with, by what the operator has to allow for that.
_S3, _GOOGLE = ("AWS_",), ("GOOGLE_", "CLOUDSDK_")
_HUB = ("HF_", "HUGGING", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def ray_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a Ray node is started with, from an environment that the service may share.

    A node's credentials are in it only where its jobs may use them.
    """
    urls = environ.get("ROADLESS_DATA_URLS", "").split()
    is_used = {
        _S3: any(url.startswith("s3://") for url in urls),
        _GOOGLE: any(url.startswith("gs://") for url in urls),
        _HUB: environ.get("ROADLESS_ALLOW_HUB") == "1",
    }
    used = tuple(prefix for kind, is_on in is_used.items() if is_on for prefix in kind)
    return _kept(environ, prefixes=used, names=(PASS_VARIABLE,))


def rank_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What ranks are started with, from their node's environment: no token but their own."""
    return _kept(environ, prefixes=(*_S3, *_GOOGLE, *_HUB), names=(STACK_VARIABLE,))


def _kept(
    environ: Mapping[str, str], *, prefixes: tuple[str, ...], names: Iterable[str]
) -> dict[str, str]:
    named = {name.strip() for name in environ.get(PASS_VARIABLE, "").split(",")}
    return {
        name: value
        for name, value in environ.items()
        if name in named or name in names or name.upper().startswith(prefixes) or _is_plain(name)
    }


def _is_plain(name: str) -> bool:
    has_prefix = name.startswith(_PREFIXES) and not _CREDENTIAL.fullmatch(name)
    return name in _NAMES or has_prefix
