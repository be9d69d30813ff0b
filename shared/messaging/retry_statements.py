"""What retry.py asks of `failed_jobs`. A lane's lock is held wherever rows of it are changed."""

from typing import Final

from sqlalchemy import text

# The lane is worked out as shared.messaging.record does it.
DUE: Final = text(
    """
    select id, consumer, topic, partition, key, record_offset, due_at, attempts from failed_jobs
    where consumer = :consumer and status = 'waiting' and due_at <= :now
      and (topic, partition, case when key is null then record_offset else crc32(key) % :buckets end % :count) not in (
          select * from unnest(cast(:topics as text[]), cast(:partitions as int[]), cast(:lanes as bigint[]))
      )
    order by due_at, record_offset, id limit :rows
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
    select id, consumer, topic, partition, key, record_offset, due_at, attempts from failed_jobs
    where consumer = :consumer and status = 'waiting' and due_at is not null order by due_at, record_offset, id limit 1
    """
)
COUNTS: Final = text(
    """
    select status, count(*) as rows, count(due_at) as due,
           count(*) filter (where error_code in ('GAP', 'OTHER_CLUSTER')) as gaps,
           extract(epoch from now() - min(failed_at)) as age
    from failed_jobs
    where consumer = :consumer and status in ('waiting', 'held', 'dead') group by status
    """
)
# The lane's lock is held: nobody else changes these rows. What is over the limit of bytes runs in the next turn.
CLAIM: Final = text(
    """
    select * from (
        select *, row_number() over place as n, sum(coalesce(octet_length(value), 0) + 100) over place as total
        from (
            select f.* from unnest(cast(:keys as bytea[])) k(key) cross join lateral (
                select * from failed_jobs
                where consumer = :consumer and topic = :topic and partition = :partition and key = k.key
                  and status in ('waiting', 'held')
                order by record_offset limit :depth
            ) f
            union all
            select * from failed_jobs where id = any(cast(:unkeyed as uuid[])) and status = 'waiting'
        ) found
        window place as (order by key, record_offset, id rows unbounded preceding)
    ) sized
    where total <= :bytes or n = 1
    order by n
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
    update failed_jobs f set status = r.status, attempts = r.attempts, due_at = r.due_at, error_code = r.code,
           error_message = r.message, fingerprint = r.fingerprint, updated_at = :now,
           errors = jsonb_path_query_array(f.errors, '$[last - 18 to last]') || jsonb_build_array(jsonb_build_object(
               'at', cast(:now as timestamptz), 'code', r.code, 'message', r.message))
    from unnest(cast(:ids as uuid[]), cast(:statuses as text[]), cast(:attempts as int[]),
                cast(:due as timestamptz[]), cast(:codes as text[]), cast(:messages as text[]),
                cast(:prints as text[])) r(id, status, attempts, due_at, code, message, fingerprint)
    where f.id = r.id
    """
)
RELEASE_KNOWN: Final = text(
    """
    update failed_jobs set status = 'waiting', due_at = now(), updated_at = now()
    where consumer = :consumer and status = 'held' and error_code = 'UNKNOWN_VERSION'
      and job_type = any(cast(:types as text[]))
    """
)
