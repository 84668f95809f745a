"""Names of blobs. The hash is part of the name: what exists under it is what the manifest means."""


def job_folder(project: str, job_id: str) -> str:
    """The folder of all checkpoints of a job."""
    return f"{project}/{job_id}"


def folder(project: str, job_id: str, checkpoint_id: str) -> str:
    """The folder of all files of one checkpoint."""
    return f"{job_folder(project, job_id)}/{checkpoint_id}"


def ids_of(folder_name: str) -> tuple[str, str]:
    """The job id and the checkpoint id of a folder."""
    _, job_id, checkpoint_id = folder_name.split("/")
    return job_id, checkpoint_id


def blob_key(project: str, job_id: str, checkpoint_id: str, *, name: str, sha256: str) -> str:
    """The key of one file of a checkpoint."""
    return f"{folder(project, job_id, checkpoint_id)}/{sha256}/{name}"
