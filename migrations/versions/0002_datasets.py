"""Uploaded data sets and the parts of their files."""

import sqlalchemy as sa
from alembic import op

import roadless.service.db.tables

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("format", sa.String(length=20), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column(
            "created_at", roadless.service.db.tables.UtcDateTime(timezone=True), nullable=False
        ),
        sa.Column(
            "touched_at", roadless.service.db.tables.UtcDateTime(timezone=True), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("project", "name", name=op.f("uq_datasets_project_name")),
    )
    with op.batch_alter_table("datasets", schema=None) as batch_op:
        batch_op.create_index("ix_datasets_listing", ["project", "created_at", "id"], unique=False)

    op.create_table(
        "dataset_parts",
        sa.Column("dataset_id", sa.String(length=40), nullable=False),
        sa.Column("file_name", sa.String(length=128), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"],
            ["datasets.id"],
            name=op.f("fk_dataset_parts_dataset_id_datasets"),
        ),
        sa.PrimaryKeyConstraint("dataset_id", "file_name", "offset", name=op.f("pk_dataset_parts")),
    )


def downgrade() -> None:
    op.drop_table("dataset_parts")
    with op.batch_alter_table("datasets", schema=None) as batch_op:
        batch_op.drop_index("ix_datasets_listing")

    op.drop_table("datasets")
