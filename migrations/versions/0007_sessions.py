"""One runner per cluster, news from ranks, and delays between attempts that are lost in a row.

Columns are added and dropped one by one: SQLite cannot copy a table that others refer to.
"""

import sqlalchemy as sa
from alembic import op

from roadless.service.db.tables import UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runners", sa.Column("cluster", sa.String(length=200), nullable=True))
    op.add_column("runners", sa.Column("session", sa.String(length=200), nullable=True))
    op.create_index("ix_runners_cluster", "runners", ["cluster"], unique=True)
    op.add_column("attempts", sa.Column("heard_at", UtcDateTime(timezone=True), nullable=True))
    op.add_column("attempts", sa.Column("moved_at", UtcDateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("not_before", UtcDateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "not_before")
    op.drop_column("attempts", "moved_at")
    op.drop_column("attempts", "heard_at")
    op.drop_index("ix_runners_cluster", "runners")
    op.drop_column("runners", "session")
    op.drop_column("runners", "cluster")
