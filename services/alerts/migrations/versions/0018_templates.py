"""Templates that administrators write, every version of each; deliveries say which one they were made with.

Revision ID: 0018
"""

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create. A version without a text takes the template back: the packaged one is used again."""
    op.execute(
        """
        create table templates (
            channel text not null,
            kind text not null,
            language text not null,
            version int not null,
            subject text,
            text text,
            mjml text,
            author text not null,
            comment text not null,
            created_at timestamptz not null,
            failures bigint not null default 0,
            last_failure text,
            last_failure_at timestamptz,
            primary key (channel, kind, language, version)
        )"""
    )
    for table in ("deliveries", "notice_deliveries"):
        op.execute(f"alter table {table} add column template text")


def downgrade() -> None:
    """Drop."""
    for table in ("deliveries", "notice_deliveries"):
        op.execute(f"alter table {table} drop column template")
    op.execute("drop table templates")
