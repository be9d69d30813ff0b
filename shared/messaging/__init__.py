"""The messaging runtime: an event takes effect exactly once for each consumer, in order, or lies in `failed_jobs`.

Every event that Kafka accepted, for each consumer that handles its type, in order for each key. There is no fourth
place.

The way of an event: `kafka` (fetch) > `delivery` (a partition's batch) > `lane` (one transaction: inbox, fence,
handlers, outbox) > `relay` (Kafka again). What fails goes to `failed` (parking) and `retry`; `fuse` stops a
consumer that only fails. `ops` and `replay` are what a person does about it. `door` is for everything that
does not come from Kafka.
"""
