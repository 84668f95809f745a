"""How much of each study is done: what fits into ten minutes of two cores, and more."""

from dataclasses import dataclass, replace

from tests.studies.evidence import anytime as b
from tests.studies.evidence import convex as a
from tests.studies.evidence import language as d
from tests.studies.evidence import prediction as c
from tests.studies.evidence.convex_search import Choice
from tests.studies.evidence.language_run import Size
from tests.studies.evidence.search import Search


@dataclass(frozen=True)
class Protocols:
    """One protocol for each study."""

    convex: a.Protocol
    anytime: b.Protocol
    prediction: c.Protocol
    language: d.Protocol


_OCTAVES = Choice(
    batch_size=16,
    num_tuning_seeds=10,
    num_reporting_seeds=20,
    first_grid=Search(low=-8, high=0),
)

SHORT = Protocols(
    convex=a.Protocol(num_epochs=24, choice=_OCTAVES),
    anytime=b.Protocol(horizons=(4, 8, 16, 32, 64), choice=_OCTAVES),
    prediction=c.Protocol(
        num_steps=800,
        batch_sizes=(1, 2, 4, 8, 16),
        num_tuning_seeds=24,
        num_reporting_seeds=24,
        first_grid=Search(low=-10, high=4, per_octave=2),
    ),
    language=d.Protocol(
        size=Size(
            layers=2,
            width=64,
            heads=4,
            context=64,
            batch_size=8,
            num_steps=1600,
            warmup_steps=100,
            num_evaluations=8,
            num_eval_samples=512,
        ),
        tuning_seeds=(0, 1),
        reporting_seeds=(2, 3, 4),
        methods=(*d.SCHEDULE_FREE, *d.RIVALS),
        # Around what shorter trials liked.
        first_grid_schedule_free=Search(low=-8, high=-6),
        first_grid_schedules=Search(low=-9, high=-7),
    ),
)

#: The convex studies fit anyway; the language model trains five times as long.
FULL = replace(
    SHORT,
    language=replace(
        SHORT.language,
        size=replace(SHORT.language.size, num_steps=8000, num_evaluations=20),
        first_grid_schedule_free=Search(low=-8, high=-5),
    ),
)
