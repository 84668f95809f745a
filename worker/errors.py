"""The error tree of the worker.

    JobFailed                each class has the reason that the attempt ends with
      DataNotFound           data_not_found         the source does not exist
      DataForbidden          data_forbidden         outside the folders that the operator opened
      DataUnreadable         data_unreadable        it exists, but reading it fails
      DataInvalid            data_invalid           it was read, but cannot be trained on
      ModelNotFound          model_not_found        the folder, hub id or function is absent
      ModelForbidden         model_forbidden        the operator has not opened or allowed it
      ModelUnreadable        model_unreadable       it exists, but reading it fails
      ModelInvalid           model_invalid          it was read or made, but does not fit the data
      MetricNotFound         metric_not_found       the function of a custom metric is absent
      MetricForbidden        metric_forbidden       the operator has not allowed it
      MetricInvalid          metric_invalid         it fails, or what it returns is not a metric
      SecretUnavailable      secret_unavailable     since deleted, or the service lost its key
      NonFiniteLoss          non_finite_loss        before the optimizer step, on every rank
      CheckpointUnreadable   checkpoint_unreadable  files and manifest differ; may be tried again

Any other exception is a fault of ours or of the machine and ends the attempt as ``worker_error``.
"""

from typing import ClassVar

from roadless.service.contract.states import Reason

#: Characters of a message that a worker sends; longer ones are in full in the rank's log.
MESSAGE_LENGTH = 4000


class JobFailed(Exception):
    """Ends the attempt; the message is written for the job's owner. Raised as a subclass."""

    reason: ClassVar[Reason]


class DataNotFound(JobFailed):
    """The data source does not exist."""

    reason = Reason.DATA_NOT_FOUND


class DataForbidden(JobFailed):
    """The data source is outside the folders that the operator opened."""

    reason = Reason.DATA_FORBIDDEN


class DataUnreadable(JobFailed):
    """The data source exists, but reading it fails."""

    reason = Reason.DATA_UNREADABLE


class DataInvalid(JobFailed):
    """The data source was read, but cannot be trained on."""

    reason = Reason.DATA_INVALID


class ModelNotFound(JobFailed):
    """The model's source does not exist."""

    reason = Reason.MODEL_NOT_FOUND


class ModelForbidden(JobFailed):
    """The operator has not opened the model's folder, the hub or the entry point."""

    reason = Reason.MODEL_FORBIDDEN


class ModelUnreadable(JobFailed):
    """The model's source exists, but reading it fails."""

    reason = Reason.MODEL_UNREADABLE


class ModelInvalid(JobFailed):
    """The model was read or made, but cannot be trained on this data."""

    reason = Reason.MODEL_INVALID


class MetricNotFound(JobFailed):
    """The function of a custom metric is not installed on the node."""

    reason = Reason.METRIC_NOT_FOUND


class MetricForbidden(JobFailed):
    """The operator has not allowed the function of a custom metric."""

    reason = Reason.METRIC_FORBIDDEN


class MetricInvalid(JobFailed):
    """A custom metric's function fails, or does not return one number per sample."""

    reason = Reason.METRIC_INVALID


class SecretUnavailable(JobFailed):
    """A secret that the job names was deleted, or the service cannot open it."""

    reason = Reason.SECRET_UNAVAILABLE


class NonFiniteLoss(JobFailed):
    """The training loss is NaN or infinite; no optimizer step was taken with it."""

    reason = Reason.NON_FINITE_LOSS


class CheckpointUnreadable(JobFailed):
    """A checkpoint's files are not what its manifest says, or do not fit the specification."""

    reason = Reason.CHECKPOINT_UNREADABLE
