"""What a job learns to do."""

from typing import Literal

Task = Literal["classification", "regression", "causal_lm"]
