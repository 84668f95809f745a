"""Why an export came to nothing.

ExportError
  NotExportable   this model cannot be written in this format
  OutputsDiffer   it was written and says something else than the model: thrown away
  ToolMissing     a package that writes or checks the format is not installed
"""


class ExportError(Exception):
    """Nothing was written; the message is for who asked."""


class NotExportable(ExportError):
    """The model cannot be written in the format."""


class OutputsDiffer(ExportError):
    """What was written does not give the model's outputs."""


class ToolMissing(ExportError):
    """The format needs a package that is not installed."""
