"""The data that a job can train on: built in, files, Hugging Face data sets, uploaded data sets.

A record becomes a sample in one of three ways: numeric columns and a target, an encoded image and a
target, or a text that is cut into windows of tokens.
"""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from roadless.service.contract.base import Spec, UnionOfUnions
from roadless.service.contract.ids import DATASET_ID_PATTERN
from roadless.service.contract.job.locations import (
    SCHEMES,
    require_path,
    require_possible,
    scheme_of,
)
from roadless.service.contract.job.tasks import Task
from roadless.service.contract.secrets import SecretName

#: The most numbers in one synthetic set, which is held in memory: 1 GiB of float32.
MAX_SYNTHETIC_NUMBERS = 2**28
MAX_CLASSES = 1_000_000
MAX_PATHS = 1000

Format = Literal["parquet", "jsonl", "csv", "npz", "text", "bytes"]
#: Formats without columns: a file is one text.
FORMATS_OF_TEXT: frozenset[str] = frozenset({"text", "bytes"})

ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=255)]
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)")


def _path_or_url(text: str) -> str:
    if "\0" in text:
        raise ValueError("expected a path, saw one with a null byte")
    url = _URL.match(text)
    if url is None:
        return text
    if url["scheme"] not in SCHEMES or not url["authority"]:
        raise ValueError(f"expected a local path or {', '.join(SCHEMES)}://, saw {text!r}")
    if "@" in url["authority"]:
        raise ValueError("expected a URL without user name and password, saw one with them")
    return text


#: A local path or a URL. The URL has no password, since it is stored and shown with the job.
PathText = Annotated[
    str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_path_or_url)
]
Paths = PathText | Annotated[tuple[PathText, ...], Field(min_length=1, max_length=MAX_PATHS)]
HubName = Annotated[str, StringConstraints(min_length=1, max_length=255)]
TargetNames = ColumnName | Annotated[tuple[ColumnName, ...], Field(min_length=1, max_length=1024)]
Pixels = Annotated[int, Field(ge=1, le=4096)]

# ---- what is held out ---------------------------------------------------------------------------


class HeldOutShare(Spec):
    """A share of the data is held out: rows drawn by the seed, or the last tokens of a text."""

    fraction: float = Field(0.05, gt=0, lt=1)
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="seed that draws the rows; of a text, the last tokens are taken",
    )


class HeldOutFiles(Spec):
    """Separate files are held out, in the same format."""

    path: Paths


class HeldOutSplit(Spec):
    """A separate split is held out."""

    split: HubName


# ---- built in -----------------------------------------------------------------------------------


class DigitsData(Spec):
    """scikit-learn's 8x8 handwritten digits: 1797 images, ten classes; every fifth held out."""

    kind: Literal["builtin"]
    name: Literal["digits"]


class BreastCancerData(Spec):
    """scikit-learn's breast cancer: 569 rows of 30 numbers, two classes; every fifth held out."""

    kind: Literal["builtin"]
    name: Literal["breast_cancer"]


class PythonStdlibBytesData(Spec):
    """The bytes of the Python standard library's own source; the last 5 % are held out."""

    kind: Literal["builtin"]
    name: Literal["python_stdlib_bytes"]


SampleShape = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(min_length=1, max_length=3)
]


class _SyntheticRows(Spec):
    """Seeded samples of one shape, made in memory when the job starts."""

    kind: Literal["builtin"]
    name: Literal["synthetic"]
    num_train: int = Field(8192, ge=1, le=10**8)
    num_eval: int = Field(1024, ge=1, le=10**8)
    input_shape: SampleShape = Field((16,), description="of one sample, for instance 3, 32, 32")
    noise: float = Field(1.0, ge=0, le=100, description="width of the noise that hides the rule")
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _fits_in_memory(self) -> Self:
        numbers = (self.num_train + self.num_eval) * math.prod(self.input_shape)
        if numbers > MAX_SYNTHETIC_NUMBERS:
            raise ValueError(
                f"expected (num_train + num_eval) x input_shape of at most {MAX_SYNTHETIC_NUMBERS} "
                f"numbers, saw {numbers}"
            )
        return self


class SyntheticClassification(_SyntheticRows):
    """Seeded classes: each a centre in [-1, 1], its samples around it."""

    generator: Literal["classification"]
    num_classes: int = Field(10, ge=2, le=MAX_CLASSES)


class SyntheticRegression(_SyntheticRows):
    """Seeded regression: targets are a linear function of inputs in [-1, 1], and noise."""

    generator: Literal["regression"]
    num_targets: int = Field(1, ge=1, le=65536)


class SyntheticTokens(Spec):
    """A seeded text of tokens: one phrase repeated, with some tokens replaced at random.

    The last 5 % are held out.
    """

    kind: Literal["builtin"]
    name: Literal["synthetic"]
    generator: Literal["tokens"]
    num_tokens: int = Field(1_000_000, ge=100, le=MAX_SYNTHETIC_NUMBERS)
    vocabulary: int = Field(256, ge=2, le=MAX_CLASSES)
    phrase: int = Field(512, ge=2, le=65536, description="tokens before the text repeats itself")
    noise: float = Field(0.1, ge=0, le=1, description="fraction of tokens replaced at random")
    seed: int = Field(0, ge=0, lt=2**63)


SyntheticData = Annotated[
    SyntheticClassification | SyntheticRegression | SyntheticTokens,
    Field(discriminator="generator"),
]
BuiltinData = Annotated[
    DigitsData | BreastCancerData | PythonStdlibBytesData | SyntheticData,
    Field(discriminator="name"),
    UnionOfUnions(),
]

# ---- records ------------------------------------------------------------------------------------


_OF_IMAGES = ("image_size", "image_channels")


class _RecordsData(Spec):
    """Which part of a record makes the sample: with ``target`` numbers or an image, else a text."""

    columns: tuple[ColumnName, ...] | None = Field(
        None,
        min_length=1,
        max_length=65536,
        description="numeric columns, or lists of equal length, side by side in this order; "
        "null: every column but the targets",
    )
    target: TargetNames | None = Field(
        None, description="column with the class number, or columns with the numbers to predict"
    )
    image: ColumnName | None = Field(
        None,
        description="column of encoded images (PNG, JPEG, ...), read as a viewer shows them; "
        "black is -1, white 1",
    )
    image_size: tuple[Pixels, Pixels] | None = Field(
        None, description="height, width to resize to; null: all images must have one size"
    )
    image_channels: Literal[1, 3] | None = Field(
        None,
        description="1: colour images become grey; 3: grey ones become RGB; null: the first image "
        "decides, and one that would lose its colour is refused",
    )
    text: ColumnName | None = Field(
        None, description="column of the texts; formats text and bytes have none"
    )
    tokenizer: PathText = Field(
        "bytes",
        description="bytes, or the path of a tokenizer.json, or of a folder with one, below the "
        "node's data roots",
    )
    separator: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="token between texts; null: the tokenizer's end of text, for bytes a zero",
    )
    num_classes: int | None = Field(
        None, ge=2, le=MAX_CLASSES, description="null: one more than the highest label"
    )
    standardise: bool = Field(
        False,
        description="subtract the mean of the training rows and divide by their standard "
        "deviation, by column or, for images, by channel",
    )
    delimiter: str = Field(",", min_length=1, max_length=1, description="for csv")

    @model_validator(mode="after")
    def _is_numbers_or_text(self) -> Self:
        named = [name for name in ("columns", "image", "num_classes") if getattr(self, name)]
        if self.target is None and (named or self.standardise):
            raise ValueError(f"expected a target beside {named or ['standardise']}, saw none")
        if self.target is not None and self.text is not None:
            raise ValueError("expected target or text, saw both")
        if self.image is not None and self.columns is not None:
            raise ValueError("expected columns or image, saw both")
        about = next((name for name in _OF_IMAGES if getattr(self, name) is not None), None)
        if about is not None and self.image is None:
            raise ValueError(f"expected an image column beside {about}, saw none")
        return self

    def require_distinct_columns(self) -> None:
        """Raise ValueError unless no column is named twice, as a feature or as a target.

        Asked of new jobs only: stored ones from before this rule must stay readable.
        """
        targets = (self.target,) if isinstance(self.target, str) else self.target or ()
        features = (self.image,) if self.image is not None else self.columns or ()
        for field, names in (("columns", features), ("target", targets)):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"expected each column once in {field}, saw {twice!r} twice")
        both = next((name for name in features if name in targets), None)
        if both is not None:
            raise ValueError(
                "expected the target to be no feature, since a model would learn to copy it, saw "
                f"{both!r} as both"
            )

    @model_validator(mode="after")
    def _tokens_need_a_text(self) -> Self:
        if self.target is not None and (self.tokenizer != "bytes" or self.separator is not None):
            raise ValueError("expected no tokenizer or separator for numbers, saw one")
        if "://" in self.tokenizer:
            raise ValueError(f"expected a tokenizer on the nodes, saw {self.tokenizer!r}")
        if self.tokenizer == "bytes" and self.separator is not None:
            raise ValueError(
                "expected no separator for bytes, which are separated by a zero byte, saw one"
            )
        return self


class FilesData(_RecordsData):
    """Files in one format: local ones below the node's data roots, s3://, gs:// or http(s)://.

    ``path`` may be a list, and except for http a pattern: ``*`` in a folder, ``**`` across folders.
    """

    kind: Literal["files"]
    format: Format
    path: Paths
    bearer: SecretName | None = Field(
        None,
        description="which of the job's secrets is sent as a bearer token to https:// URLs of the "
        "files; null: none",
    )
    eval: HeldOutShare | HeldOutFiles = HeldOutShare()

    @model_validator(mode="before")
    @classmethod
    def _bytes_had_a_name(cls, fields: Any) -> Any:
        """Accept specifications from before there were other formats, which named the only one."""
        if isinstance(fields, dict) and fields.get("name") == "bytes" and "format" not in fields:
            rest = {key: value for key, value in fields.items() if key != "name"}
            return {**rest, "format": "bytes"}
        return fields

    @model_validator(mode="after")
    def _format_has_columns(self) -> Self:
        check_columns(self, format=self.format)
        return self


class HuggingFaceData(_RecordsData):
    """A data set that Hugging Face's ``datasets`` reads: a folder, or one on the hub if allowed."""

    kind: Literal["huggingface"]
    path: str = Field(
        min_length=1,
        max_length=4096,
        pattern=r"^[^\x00]+$",
        description="a folder below the node's data roots, or the id of a data set on the hub",
    )
    name: HubName | None = Field(None, description="which of its configurations; null: the default")
    revision: HubName | None = Field(None, description="on the hub: a branch, tag or commit")
    split: HubName = "train"
    streaming: bool = Field(
        True, description="of the hub: copy one file at a time; false: all of them first"
    )
    eval: HeldOutShare | HeldOutSplit = HeldOutShare()

    @model_validator(mode="after")
    def _records_have_columns(self) -> Self:
        check_columns(self, format="parquet")
        return self


class UploadedData(_RecordsData):
    """A data set that was uploaded to this service, and sealed."""

    kind: Literal["dataset"]
    dataset_id: str = Field(pattern=DATASET_ID_PATTERN)
    files: PathText = Field("*", description="pattern of the files to train on")
    eval: HeldOutShare | HeldOutFiles = HeldOutShare()


RecordsData = FilesData | HuggingFaceData | UploadedData
DataSpec = Annotated[
    BuiltinData | FilesData | HuggingFaceData | UploadedData,
    Field(discriminator="kind"),
    UnionOfUnions(),
]

# ---- what it is for -----------------------------------------------------------------------------

_NUMBERS: frozenset[Task] = frozenset({"classification", "regression"})
_TOKENS: frozenset[Task] = frozenset({"causal_lm"})


def check_columns(data: _RecordsData, *, format: str) -> None:
    """Raise ValueError unless the columns that are named suit files of this format."""
    if format in FORMATS_OF_TEXT and (data.target is not None or data.text is not None):
        raise ValueError(f"expected no target and no text for {format}, which has no columns")
    if format not in FORMATS_OF_TEXT and data.target is None and data.text is None:
        raise ValueError(f"expected a target, or a column of text, for {format}, saw neither")
    if format == "bytes" and data.tokenizer != "bytes":
        raise ValueError("expected format text for a tokenizer, saw bytes")
    if format == "npz" and data.text is not None:
        raise ValueError("expected a target for npz, saw a column of text")


def tasks_of_data(data: DataSpec) -> frozenset[Task]:
    """Return the tasks that the data has targets for."""
    match data:
        case DigitsData() | BreastCancerData() | SyntheticClassification():
            return frozenset({"classification"})
        case SyntheticRegression():
            return frozenset({"regression"})
        case PythonStdlibBytesData() | SyntheticTokens():
            return _TOKENS
        case _:
            return _TOKENS if data.target is None else _tasks_of_rows(data)


def _tasks_of_rows(data: _RecordsData) -> frozenset[Task]:
    if isinstance(data.target, tuple) and len(data.target) > 1:
        return frozenset({"regression"})
    if data.num_classes is not None:
        return frozenset({"classification"})
    return _NUMBERS


def require_possible_files(data: DataSpec) -> None:
    """Raise ValueError if files that the data names cannot exist, on whatever node.

    Asked of new jobs only: stored ones from before this rule must stay readable.
    """
    match data:
        case FilesData():
            for path in _paths(data.path) + _held_out_paths(data.eval):
                require_possible(path)
        case UploadedData():
            for pattern in (data.files, *_held_out_paths(data.eval)):
                if scheme_of(pattern):
                    raise ValueError(f"expected a pattern over names of files, saw {pattern!r}")
        case HuggingFaceData():
            require_path(data.path)
        case _:
            return
    require_path(data.tokenizer)


def _paths(paths: Paths) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else paths


def _held_out_paths(held_out: HeldOutShare | HeldOutFiles) -> tuple[str, ...]:
    return _paths(held_out.path) if isinstance(held_out, HeldOutFiles) else ()


def label_of_data(data: DataSpec) -> str:
    """Return the data's name in messages: the data set's if it is built in, else its kind."""
    return data.name if data.kind == "builtin" else data.kind
