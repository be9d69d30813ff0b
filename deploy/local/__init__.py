"""Everything on one machine: Postgres and Kafka as child processes, and `make run`."""
