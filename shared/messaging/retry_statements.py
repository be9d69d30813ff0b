"""What retry.py asks of `failed_jobs`. A lane's lock is held wherever rows of it are changed."""

from typing import Final

from sqlalchemy import text

DUE: Final = text(
    """
    select id, topic, partition, key, record_offset, due_at, attempts from failed_jobs
    where consumer = :consumer and status = 'waiting' and due_at <= :now
    order by due_at limit 1000
    """
)
LOOK: Final = text(
    """
    select exists(select from failed_jobs
                  where consumer = :consumer and status = 'waiting' and due_at <= :now) as due,
           (select min(due_at) from failed_jobs
            where consumer = :consumer and status = 'waiting' and due_at > :now) as next_at
    """
)
# By due time, which a failed probe moves: one head that never works must not take every probe.
OLDEST: Final = text(
    """
    select id, topic, partition, key, record_offset, due_at, attempts from failed_jobs
    where consumer = :consumer and status = 'waiting' and due_at is not null order by due_at, failed_at limit 1
    """
)
COUNTS: Final = text(
    """
    select status, count(*) as rows, count(due_at) as due,
           count(*) filter (where error_code in ('GAP', 'OTHER_CLUSTER')) as gaps
    from failed_jobs
    where consumer = :consumer and status in ('waiting', 'held', 'dead') group by status
    """
)
# The lane's lock is held: nobody else changes these rows.
CLAIM: Final = text(
    """
    select f.* from unnest(cast(:keys as bytea[])) k(key) cross join lateral (
        select * from failed_jobs
        where consumer = :consumer and topic = :topic and partition = :partition and key = k.key
          and status in ('waiting', 'held')
        order by record_offset limit :depth
    ) f
    union all
    select * from failed_jobs where id = any(cast(:unkeyed as uuid[])) and status = 'waiting'
    """
)
RESOLVE: Final = text(
    """
    update failed_jobs set status = 'resolved', due_at = null, updated_at = :now, attempts = attempts + 1,
           resolved_by = coalesce(resolved_by, 'retry')
    where id = any(cast(:ids as uuid[]))
    """
)
FAIL: Final = text(
    """
    update failed_jobs set status = :status, attempts = :attempts, due_at = :due_at, error_code = :code,
           error_message = :message, fingerprint = :print, updated_at = :now,
           errors = jsonb_path_query_array(errors, '$[last - 18 to last]') || cast(:entry as jsonb)
    where id = :id
    """
)
FREE_NEXT: Final = text(
    """
    update failed_jobs set due_at = :now, updated_at = :now
    where status = 'waiting' and due_at is null and id in (
        select distinct on (key) id from failed_jobs
        where consumer = :consumer and topic = :topic and partition = :partition
          and key = any(cast(:keys as bytea[])) and status in ('waiting', 'held')
        order by key, record_offset
    )
    """
)
NOT_DUE: Final = text(
    "update failed_jobs set due_at = null where id = any(cast(:ids as uuid[])) and status = 'waiting'"
)
RELEASE_KNOWN: Final = text(
    """
    update failed_jobs set status = 'waiting', due_at = now(), updated_at = now()
    where consumer = :consumer and status = 'held' and error_code = 'UNKNOWN_VERSION'
      and job_type = any(cast(:types as text[]))
    """
)
