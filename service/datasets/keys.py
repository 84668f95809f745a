"""Names of parts in the blob store of data sets. The hash is part of the name."""


def folder(project: str, dataset_id: str, sha256: str) -> str:
    """Where a part's content is; two parts with the same content share it."""
    return f"{project}/{dataset_id}/{sha256}"


def ids_of(folder_name: str) -> tuple[str, str]:
    """The data set and the hash of a folder."""
    _, dataset_id, sha256 = folder_name.split("/")
    return dataset_id, sha256


def part_key(project: str, dataset_id: str, *, sha256: str, size: int) -> str:
    """The key of a part's content."""
    return f"{folder(project, dataset_id, sha256)}/{size}/part"


def dataset_folder(project: str, dataset_id: str) -> str:
    """The folder of one data set."""
    return f"{project}/{dataset_id}"
