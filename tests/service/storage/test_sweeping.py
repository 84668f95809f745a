"""What is left over is deleted, whatever stays beside it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.errors import Unavailable
from roadless.service.storage.blobs import MemoryBlobs
from roadless.service.storage.sweeping import MAX_FAILURES, delete_each


class Locked(MemoryBlobs):
    """Refuses to delete some folders, as a bucket with locked objects does."""

    def __init__(self, stuck):
        super().__init__()
        self.stuck, self.asked = stuck, []

    def delete(self, prefix):
        self.asked.append(prefix)
        if prefix in self.stuck:
            raise Unavailable("the blob store does not delete; try again")


@given(st.lists(st.booleans(), max_size=MAX_FAILURES - 1))
def test_folders_that_stay_keep_no_other_from_its_turn(are_stuck):
    names = [f"folder-{number}" for number in range(len(are_stuck))]
    stuck = {name for name, is_stuck in zip(names, are_stuck, strict=True) if is_stuck}
    blobs = Locked(stuck)
    assert delete_each(blobs, names) == [name for name in names if name not in stuck]
    assert blobs.asked == names


def test_a_store_that_deletes_nothing_is_away():
    names = [f"folder-{number}" for number in range(1000)]
    blobs = Locked(set(names))
    with pytest.raises(Unavailable):
        delete_each(blobs, names)
    assert len(blobs.asked) == MAX_FAILURES
