"""The data that a job can train on."""

from typing import Annotated, Literal

from pydantic import Field

from service.contract.base import Spec


class DigitsData(Spec):
    """scikit-learn's 8x8 handwritten digits: 1797 images, ten classes; every fifth held out."""

    kind: Literal["builtin"]
    name: Literal["digits"]


class PythonStdlibBytesData(Spec):
    """The bytes of the Python standard library's own source; the last 5 % are held out."""

    kind: Literal["builtin"]
    name: Literal["python_stdlib_bytes"]


class FileBytesData(Spec):
    """The bytes of one local file on the training nodes; the last 5 % are held out.

    Only files below one of the runner's ``ROADLESS_DATA_ROOTS`` are read.
    """

    kind: Literal["files"]
    name: Literal["bytes"]
    path: str = Field(min_length=1, max_length=4096)


DataSpec = Annotated[
    DigitsData | PythonStdlibBytesData | FileBytesData, Field(discriminator="name")
]
