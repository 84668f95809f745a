"""Uploaded wheels."""

import sqlalchemy as sa
from alembic import op

import roadless.service.db.tables

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "wheels",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("file_name", sa.String(length=255), nullable=False),
        sa.Column("distribution", sa.String(length=255), nullable=False),
        sa.Column("version", sa.String(length=255), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("is_stored", sa.Boolean(), nullable=False),
        sa.Column(
            "created_at", roadless.service.db.tables.UtcDateTime(timezone=True), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_wheels")),
    )
    with op.batch_alter_table("wheels", schema=None) as batch_op:
        batch_op.create_index("ix_wheels_listing", ["project", "created_at", "id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("wheels", schema=None) as batch_op:
        batch_op.drop_index("ix_wheels_listing")

    op.drop_table("wheels")
