"""Proof by chaos: a ledger of transfers on real Apache Kafka and real Postgres while everything is killed.

events.py   what is sent, and what is wrong with a share of it
book.py     the service under test: schema, handlers, an effect on the outside
replica.py  one process of it
servers.py  Postgres, Kafka and replicas as child processes, with proxies in between
producer.py sends at a steady rate and remembers what Kafka acknowledged
faults.py   the plan (from a seed) and how each fault is done
monitor.py  watches stalls and recoveries while it runs
verify.py   reads log and database afterwards and says what is wrong
driver.py   the run; report.py its result. `python -m tests.chaos.ledger --help`; docs/chaos.md
"""
