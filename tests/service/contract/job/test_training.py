"""How many ranks a job may have, and in how many parts each of them computes its samples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from roadless.service.contract.job.training import (
    ParallelismSpec,
    TrainingSpec,
    accumulation_steps,
    gang_sizes,
)

SIZES = st.integers(1, 24)


def test_num_workers_is_the_name_of_both_bounds():
    parallelism = ParallelismSpec(num_workers=3)
    assert (parallelism.fewest_workers, parallelism.num_workers) == (3, 3)
    elastic = ParallelismSpec(min_workers=2, max_workers=5)
    assert (elastic.fewest_workers, elastic.num_workers) == (2, 5)
    assert ParallelismSpec(num_workers=5, min_workers=2).fewest_workers == 2


@given(st.builds(dict, min_workers=SIZES, max_workers=SIZES))
def test_an_elastic_specification_reads_back_as_itself(fields):
    if fields["min_workers"] > fields["max_workers"]:
        with pytest.raises(ValidationError, match="expected min_workers of at most"):
            ParallelismSpec(**fields)
        return
    parallelism = ParallelismSpec(**fields)
    assert ParallelismSpec.model_validate_json(parallelism.model_dump_json()) == parallelism


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_workers": 2, "max_workers": 3}, "num_workers to be max_workers = 3 or absent"),
        ({"num_workers": 2, "min_workers": 3}, "min_workers of at most 2, saw 3"),
        ({"num_workers": 4, "replicas": 2}, "replicas only for fsdp, saw 2 for ddp"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        ParallelismSpec(**fields)


@given(batch=st.integers(1, 200), fewest=SIZES, more=SIZES, replicas=st.integers(1, 3))
def test_every_size_shares_the_batch_evenly_and_none_is_left_out(batch, fewest, more, replicas):
    parallelism = ParallelismSpec(
        strategy="fsdp", replicas=replicas, min_workers=fewest, max_workers=fewest + more
    )
    sizes = gang_sizes(parallelism, batch_size=batch)
    assert list(sizes) == sorted(set(sizes), reverse=True)
    for number in range(fewest, fewest + more + 1):
        assert (number in sizes) == (batch % number == 0 and number % replicas == 0)


@given(most=st.integers(1, 12), accumulation=st.integers(1, 6), samples=st.integers(1, 10))
def test_no_part_of_a_smaller_gang_is_larger_than_at_full_size(most, accumulation, samples):
    """And at full size there are as many parts as the specification says."""
    training = TrainingSpec(
        batch_size=most * accumulation * samples, accumulation_steps=accumulation
    )
    parallelism = ParallelismSpec(min_workers=1, max_workers=most)
    assert accumulation_steps(training, parallelism, world_size=most) == accumulation
    for size in gang_sizes(parallelism, batch_size=training.batch_size):
        share, parts = (
            training.batch_size // size,
            accumulation_steps(training, parallelism, world_size=size),
        )
        assert share % parts == 0
        assert share // parts <= samples
