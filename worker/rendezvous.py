"""Where ranks meet: the others come when rank 0 listens, and not before."""

import socket
import time
from typing import Final

#: torch's store tries again by itself, but after half a second and more.
_TRY_AGAIN_SECONDS: Final = 0.005
#: After this it may: rank 0 is slow, or its host cannot be reached.
PATIENCE_SECONDS: Final = 10.0


def wait_for_listener(address: str, port: int) -> bool:
    """Return once something listens there; False where nothing does for so long, or ever will."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up_at:
        try:
            socket.create_connection((address, port), timeout=PATIENCE_SECONDS).close()
            return True
        except ConnectionRefusedError:
            time.sleep(_TRY_AGAIN_SECONDS)
        except OSError:  # the store says what is wrong
            return False
    return False
