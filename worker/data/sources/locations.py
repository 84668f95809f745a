"""Finds the files of a specification's paths: the one ``match`` over where data can be."""

from collections.abc import Iterable

from roadless.service.contract.job.locations import require_possible, scheme_of
from roadless.worker.data.lazy_import import lazy_import
from roadless.worker.data.progress import Tell
from roadless.worker.data.sources import http_files, local_files
from roadless.worker.data.sources.source_file import MAX_FILES, SourceFile, require_once
from roadless.worker.errors import DataInvalid
from roadless.worker.rank_launch import DataSources


def find_files(
    paths: str | Iterable[str],
    *,
    sources: DataSources,
    tell: Tell,
    bearer: str | None = None,
) -> list[SourceFile]:
    """Return the files that the paths name, in the order of the paths, sorted within a pattern.

    ``bearer``: which of the job's secrets is sent to https:// URLs. Raises the JobFailed errors
    named ``Data...``, or SourceAway.
    """
    each = [paths] if isinstance(paths, str) else paths
    found: list[SourceFile] = []
    for path in each:
        found += _find(path, sources=sources, bearer=bearer)
        tell(f"{len(found)} files are found")
    if len(found) > MAX_FILES:
        raise DataInvalid(f"expected at most {MAX_FILES} files, saw {len(found)}")
    require_once(found)
    return found


def _find(path: str, *, sources: DataSources, bearer: str | None) -> list[SourceFile]:
    try:
        require_possible(path)
    except ValueError as error:
        raise DataInvalid(str(error)) from error
    match scheme_of(path):
        case "":
            return local_files.find(path, sources=sources)
        case "s3" | "gs":
            found: list[SourceFile] = lazy_import("sources.object_files").find(
                path, sources=sources
            )
            return found
        case _:
            return [http_files.find(path, sources=sources, bearer=bearer)]
