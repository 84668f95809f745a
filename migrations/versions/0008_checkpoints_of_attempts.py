"""An index for the checkpoints of an attempt: each attempt that is deleted asks for them."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_checkpoints_attempt", "checkpoints", ["attempt_id"])


def downgrade() -> None:
    op.drop_index("ix_checkpoints_attempt", "checkpoints")
