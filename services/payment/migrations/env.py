"""Alembic's entry for the payment schema; shared.migrate does the work."""

from alembic import context

from shared.migrate import run_env

run_env(context.config.attributes["connection"], context, "payment")
