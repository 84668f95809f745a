"""Why an export failed.

ExportError
  NotExportable   this model cannot be written in this format
  OutputsDiffer   what was written computes something else than the model: removed
  ToolMissing     a package that writes or checks the format is not installed
"""


class ExportError(Exception):
    """Nothing was written; the message is for the caller."""


class NotExportable(ExportError):
    """The model cannot be written in the format."""


class OutputsDiffer(ExportError):
    """The exported form does not reproduce the model's outputs."""


class ToolMissing(ExportError):
    """The format needs a package that is not installed."""
