"""Leases: how long an attempt may be silent. Pure; the clock is passed in.

What renews a lease is news from the ranks. A report is. That they are seen to use processor time is
as well, for they may be in one long call that lets nothing else run; but only for as long as a step
may take, since ranks whose reports do not arrive are of no use either. That a runner lists an
attempt is none, except while it is being started: frozen ranks are listed, too.

A service that was down, or could not reach its database, must not call anyone silent: after each
such outage leases are frozen for one full lease.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True)
class LeasePolicy:
    """Length of a lease in seconds, and until when no lease may expire."""

    seconds: float
    frozen_until: datetime

    @classmethod
    def starting(cls, now: datetime, *, seconds: float) -> "LeasePolicy":
        """The policy of a service that starts, or reaches its database again, now."""
        return cls(seconds, now + timedelta(seconds=seconds))

    def until(self, now: datetime) -> datetime:
        """When a lease renewed now ends."""
        return now + timedelta(seconds=self.seconds)

    def until_moved(
        self, lease_until: datetime, *, moved_at: datetime, heard_at: datetime, hang_seconds: float
    ) -> datetime:
        """When the lease ends of ranks that last used processor time, and last reported, then.

        ``lease_until``: when it ends otherwise. ``hang_seconds``: how long a step may take.
        """
        given_up_at = heard_at + timedelta(seconds=hang_seconds)
        return max(lease_until, min(self.until(moved_at), given_up_at))

    def may_expire(self, now: datetime) -> bool:
        """Whether leases may expire now."""
        return now >= self.frozen_until

    def silent_since(self, now: datetime) -> datetime:
        """Who was last heard before this time is silent; while leases are frozen nobody is."""
        if not self.may_expire(now):
            return datetime.min.replace(tzinfo=UTC)
        return now - timedelta(seconds=self.seconds)


@dataclass
class LeaseKeeper:
    """The policy in force: frozen again after each outage of service or database."""

    policy: LeasePolicy
    #: How often the service is to check the leases, and when it last did.
    look_every_seconds: float
    looked_at: datetime

    @classmethod
    def starting(cls, now: datetime, *, seconds: float, look_every_seconds: float) -> "LeaseKeeper":
        """The keeper of a service that starts now, with leases of ``seconds``."""
        return cls(LeasePolicy.starting(now, seconds=seconds), look_every_seconds, now)

    def freeze(self, now: datetime) -> None:
        """Give every attempt one full lease from now to report again."""
        self.policy = LeasePolicy.starting(now, seconds=self.policy.seconds)

    def look(self, now: datetime) -> LeasePolicy:
        """The policy to check the leases with now.

        Frozen if the check is late by half a lease: this process was suspended, or starved, and
        reports may be waiting unread in its socket.
        """
        allowed = self.look_every_seconds + self.policy.seconds / 2
        if now - self.looked_at > timedelta(seconds=allowed):
            self.freeze(now)
        self.looked_at = now
        return self.policy
