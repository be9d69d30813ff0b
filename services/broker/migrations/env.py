"""Alembic's entry for the broker schema; shared.migrate does the work."""

from alembic import context

from shared.migrate import run_env

run_env(context.config.attributes["connection"], context, "broker")
