"""The life of a job as data: phases, signals, reasons, and the one table of allowed moves.

``service/jobs/transitions.py`` applies the table; nothing else changes a phase.
"""

from enum import StrEnum


class Phase(StrEnum):
    """Where a job is. Terminal phases hold no process, actor or GPU on any cluster."""

    QUEUED = "QUEUED"  #: waits for capacity
    STARTING = "STARTING"  #: an attempt is claimed; its first step is not stored yet
    RUNNING = "RUNNING"  #: steps arrive
    RECOVERING = "RECOVERING"  #: an attempt is over; the next starts when its seats are free
    PAUSING = "PAUSING"  #: evaluates, saves and leaves, until the user resumes it
    PAUSED = "PAUSED"  #: holds nothing, and waits for the user to resume it
    STOPPING = "STOPPING"  #: evaluates, saves and leaves, as the user asked
    FINISHING = "FINISHING"  #: the budget is reached; seats are being released
    FAILING = "FAILING"  #: failed; seats are being released
    CANCELLING = "CANCELLING"  #: killed as the user asked; seats are being released
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({Phase.STOPPED, Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})

#: Phases in which a runner may claim the job (RECOVERING: once the lost attempt holds nothing).
CLAIMABLE = frozenset({Phase.QUEUED, Phase.RECOVERING})


class Signal(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"  #: a runner takes it
    STEP = "step"  #: the attempt's first step is stored
    PAUSE = "pause"  #: a user wants it to wait
    RESUME = "resume"  #: a user wants it to continue as it is
    EXTEND = "extend"  #: a user gives it a larger budget
    RETRY = "retry"  #: a user wants what failed to be tried again
    STOP = "stop"  #: a user asks for a graceful end
    CANCEL = "cancel"  #: a user asks for an immediate end
    BUDGET_REACHED = "budget_reached"  #: the attempt ended at a limit or goal of its budget
    STOP_DONE = "stop_done"  #: the attempt ended as a stop asked
    PAUSE_DONE = "pause_done"  #: the attempt ended as a pause asked
    FAIL = "fail"  #: the attempt ended with an error that a retry does not fix
    LOSE = "lose"  #: the attempt died or fell silent, and may be tried again
    RELEASE = "release"  #: nothing of the attempt is held on the cluster any more


#: Signals of users that open a finished job again.
REOPENING = frozenset({Signal.RESUME, Signal.EXTEND, Signal.RETRY})

_P, _S = Phase, Signal

#: (phase, signal) -> next phase. A pair that is absent is refused.
TRANSITIONS: dict[tuple[Phase, Signal], Phase] = {
    (_P.QUEUED, _S.CLAIM): _P.STARTING,
    (_P.QUEUED, _S.PAUSE): _P.PAUSED,
    (_P.QUEUED, _S.EXTEND): _P.QUEUED,
    (_P.QUEUED, _S.STOP): _P.STOPPED,
    (_P.QUEUED, _S.CANCEL): _P.CANCELLED,
    (_P.STARTING, _S.STEP): _P.RUNNING,
    (_P.STARTING, _S.PAUSE): _P.PAUSING,
    (_P.STARTING, _S.EXTEND): _P.STARTING,
    (_P.STARTING, _S.STOP): _P.STOPPING,
    (_P.STARTING, _S.CANCEL): _P.CANCELLING,
    (_P.STARTING, _S.BUDGET_REACHED): _P.FINISHING,
    (_P.STARTING, _S.STOP_DONE): _P.STOPPING,
    (_P.STARTING, _S.PAUSE_DONE): _P.PAUSING,
    (_P.STARTING, _S.FAIL): _P.FAILING,
    (_P.STARTING, _S.LOSE): _P.RECOVERING,
    (_P.RUNNING, _S.STEP): _P.RUNNING,
    (_P.RUNNING, _S.PAUSE): _P.PAUSING,
    (_P.RUNNING, _S.EXTEND): _P.RUNNING,
    (_P.RUNNING, _S.STOP): _P.STOPPING,
    (_P.RUNNING, _S.CANCEL): _P.CANCELLING,
    (_P.RUNNING, _S.STOP_DONE): _P.STOPPING,
    (_P.RUNNING, _S.PAUSE_DONE): _P.PAUSING,
    (_P.RUNNING, _S.BUDGET_REACHED): _P.FINISHING,
    (_P.RUNNING, _S.FAIL): _P.FAILING,
    (_P.RUNNING, _S.LOSE): _P.RECOVERING,
    (_P.RECOVERING, _S.CLAIM): _P.STARTING,
    (_P.RECOVERING, _S.PAUSE): _P.PAUSING,
    (_P.RECOVERING, _S.EXTEND): _P.RECOVERING,
    (_P.RECOVERING, _S.STOP): _P.RECOVERING,
    (_P.RECOVERING, _S.CANCEL): _P.CANCELLING,
    (_P.RECOVERING, _S.FAIL): _P.FAILING,
    (_P.RECOVERING, _S.RELEASE): _P.RECOVERING,
    (_P.PAUSING, _S.STEP): _P.PAUSING,
    (_P.PAUSING, _S.PAUSE): _P.PAUSING,
    (_P.PAUSING, _S.EXTEND): _P.PAUSING,
    (_P.PAUSING, _S.STOP): _P.STOPPING,
    (_P.PAUSING, _S.CANCEL): _P.CANCELLING,
    (_P.PAUSING, _S.PAUSE_DONE): _P.PAUSING,
    (_P.PAUSING, _S.STOP_DONE): _P.STOPPING,
    (_P.PAUSING, _S.BUDGET_REACHED): _P.FINISHING,
    (_P.PAUSING, _S.FAIL): _P.FAILING,
    (_P.PAUSING, _S.LOSE): _P.PAUSING,
    (_P.PAUSING, _S.RELEASE): _P.PAUSED,
    (_P.PAUSED, _S.PAUSE): _P.PAUSED,
    (_P.PAUSED, _S.RESUME): _P.QUEUED,
    (_P.PAUSED, _S.EXTEND): _P.PAUSED,
    (_P.PAUSED, _S.STOP): _P.STOPPED,
    (_P.PAUSED, _S.CANCEL): _P.CANCELLED,
    (_P.STOPPING, _S.STEP): _P.STOPPING,
    (_P.STOPPING, _S.STOP): _P.STOPPING,
    (_P.STOPPING, _S.CANCEL): _P.CANCELLING,
    (_P.STOPPING, _S.STOP_DONE): _P.STOPPING,
    (_P.STOPPING, _S.PAUSE_DONE): _P.STOPPING,
    (_P.STOPPING, _S.BUDGET_REACHED): _P.FINISHING,
    (_P.STOPPING, _S.FAIL): _P.FAILING,
    (_P.STOPPING, _S.LOSE): _P.RECOVERING,
    (_P.STOPPING, _S.RELEASE): _P.STOPPED,
    (_P.FINISHING, _S.EXTEND): _P.RECOVERING,
    (_P.FINISHING, _S.CANCEL): _P.FINISHING,
    (_P.FINISHING, _S.RELEASE): _P.SUCCEEDED,
    (_P.FAILING, _S.CANCEL): _P.FAILING,
    (_P.FAILING, _S.RELEASE): _P.FAILED,
    (_P.CANCELLING, _S.CANCEL): _P.CANCELLING,
    (_P.CANCELLING, _S.LOSE): _P.CANCELLING,
    (_P.CANCELLING, _S.FAIL): _P.CANCELLING,
    (_P.CANCELLING, _S.STOP_DONE): _P.CANCELLING,
    (_P.CANCELLING, _S.PAUSE_DONE): _P.CANCELLING,
    (_P.CANCELLING, _S.BUDGET_REACHED): _P.CANCELLING,
    (_P.CANCELLING, _S.STEP): _P.CANCELLING,
    (_P.CANCELLING, _S.RELEASE): _P.CANCELLED,
    (_P.STOPPED, _S.RESUME): _P.QUEUED,
    (_P.STOPPED, _S.EXTEND): _P.QUEUED,
    (_P.SUCCEEDED, _S.EXTEND): _P.QUEUED,
    (_P.FAILED, _S.RETRY): _P.QUEUED,
}


class Desired(StrEnum):
    """What the user wants of the job now; ranks pull it with every report."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"
    CANCEL = "cancel"


class Reason(StrEnum):
    """Why an attempt ended, or why a job waits, in one word that a program can act on."""

    WAITING_FOR_CAPACITY = "waiting_for_capacity"
    NO_RUNNER = "no_runner"
    PAUSED_BY_USER = "paused_by_user"
    PAUSE_EXPIRED = "pause_expired"
    STOPPED_BY_USER = "stopped_by_user"
    CANCELLED_BY_USER = "cancelled_by_user"
    BUDGET_REACHED = "budget_reached"
    RESIZED = "resized"
    GOAL_REACHED = "goal_reached"
    NO_BETTER = "no_better"
    # for the user to fix: never retried
    DATA_NOT_FOUND = "data_not_found"
    DATA_UNREADABLE = "data_unreadable"
    DATA_FORBIDDEN = "data_forbidden"
    DATA_INVALID = "data_invalid"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_UNREADABLE = "model_unreadable"
    MODEL_FORBIDDEN = "model_forbidden"
    MODEL_INVALID = "model_invalid"
    SECRET_UNAVAILABLE = "secret_unavailable"
    METRIC_NOT_FOUND = "metric_not_found"
    METRIC_FORBIDDEN = "metric_forbidden"
    METRIC_INVALID = "metric_invalid"
    NON_FINITE_LOSS = "non_finite_loss"
    CHECKPOINT_MISMATCH = "checkpoint_mismatch"
    # the machines' fault, or unknown: retried
    RANK_DIED = "rank_died"
    RANK_HUNG = "rank_hung"
    UNHEARD = "unheard"
    WORKER_ERROR = "worker_error"
    LEASE_EXPIRED = "lease_expired"
    START_TIMEOUT = "start_timeout"
    START_FAILED = "start_failed"
    CHECKPOINT_UNREADABLE = "checkpoint_unreadable"
    # after too many of those
    RETRIES_EXHAUSTED = "retries_exhausted"


#: Endings at a limit or goal of the budget: the job has all that it was to have.
REACHED = frozenset({Reason.BUDGET_REACHED, Reason.GOAL_REACHED, Reason.NO_BETTER})

#: Endings that a new attempt may fix.
RETRYABLE = frozenset(
    {
        Reason.RANK_DIED,
        Reason.RANK_HUNG,
        Reason.UNHEARD,
        Reason.WORKER_ERROR,
        Reason.LEASE_EXPIRED,
        Reason.START_TIMEOUT,
        Reason.START_FAILED,
        Reason.CHECKPOINT_UNREADABLE,
    }
)
