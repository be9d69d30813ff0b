"""Credentials under envelope encryption, OAuth redirects under way, and callbacks as they came.

Revision ID: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

UP = (
    """
    create table credentials (
        account_id uuid primary key references accounts,
        version uuid not null,
        names text[] not null,
        key_id text not null,
        wrapped bytea not null,
        body bytea not null,
        updated_at timestamptz not null,
        expires_at timestamptz,
        refresh_at timestamptz,
        lease uuid,
        lease_until timestamptz,
        refused_at timestamptz
    )""",
    "comment on table credentials is 'sealed about their account and venue: moved to another row they do not open'",
    "comment on column credentials.version is 'another one whenever the credentials are'",
    "comment on column credentials.lease_until is 'with a lease: somebody refreshes; without: nobody tries before'",
    "comment on column credentials.refused_at is 'the venue took back what they are refreshed with'",
    """
    create table oauth_states (
        account_id uuid primary key references accounts,
        digest bytea not null unique,
        user_id uuid not null,
        venue text not null,
        key_id text not null,
        wrapped bytea not null,
        body bytea not null,
        expires_at timestamptz not null
    )""",
    "comment on table oauth_states is 'one redirect at a time for each account; body is the sealed PKCE verifier'",
    """
    create table callbacks (
        venue text not null,
        event_id text not null,
        signed_at timestamptz not null,
        received_at timestamptz not null,
        body bytea not null,
        order_id uuid,
        venue_order_id text,
        open boolean not null,
        primary key (venue, event_id)
    )""",
    "comment on column callbacks.open is 'it names an order that we did not know yet'",
    "create index callbacks_received on callbacks (received_at)",
    "create index callbacks_open on callbacks (received_at) where open",
)


def upgrade() -> None:
    """Create."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Drop."""
    for table in ("callbacks", "oauth_states", "credentials"):
        op.execute(f"drop table {table}")
