"""One word for what retention keeps since a user wants it: pinned."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


# As SQL that both databases know: alembic's own way would copy the whole table on SQLite.


def upgrade() -> None:
    op.execute("ALTER TABLE checkpoints RENAME COLUMN requested TO pinned")


def downgrade() -> None:
    op.execute("ALTER TABLE checkpoints RENAME COLUMN pinned TO requested")
