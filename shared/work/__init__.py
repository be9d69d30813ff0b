"""Claimed rows: effects on the outside world, each told apart from a crash around it.

    pending -> claimed -> started -> done | failed | unknown
       ^__________________________|  (tried again later)

A handler writes a row with `due_at`; a `Worker` claims it (lease and token), commits `started` right before
the effect, performs it, and records the outcome where the token is still its own. So a crash tells what it
left: a lease that ran out in `claimed` means the effect never began and the row is simply claimed again; one
that ran out in `started` means nobody knows: it is counted, and the work's stated policy decides:

    resend    perform again; the row's `uncertain` is true, so the effect can say that it may repeat itself
    look_up   ask the other side first; only what it does not know is performed again
    leave     the row ends as `unknown` and a person decides

`prepare` reads what the effect needs while the row is still `claimed`, so that a database that fails there costs an
attempt and leaves no doubt. Where it decides by a transaction whether the effect is to be, that one may start the row.

How an effect ends (`perform` raises, see shared.errors):

    returns                    done
    Transient(retry_after_s)   again, after the backoff or what was asked for, whichever is longer
    Busy(retry_after_s)        again then, at no cost in attempts; the lane (or everyone) is left alone
    Permanent                  failed, with the reason
    Withdrawn                  suppressed or digested: `prepare` found it unwanted (unknown, if it may have happened)
    OutcomeUnknown, any other  as a lease that ran out in `started`

A `lane` is a destination with at most one effect in flight, whatever the number of replicas, and a wait that it asks
for holds for all of them: it is a row of `work_pauses`, written with the outcome. Where several lanes lead to the same
destination, `pauses` names the column that a wait binds. Replicas need clocks that agree to
within a fraction of the lease.
"""

from shared.work.pace import Precedence, Quiet, Together
from shared.work.rules import (
    Busy,
    Decision,
    OnUnknown,
    OutcomeUnknown,
    Policy,
    Status,
    Withdrawn,
    backoff_s,
    decide,
    explain,
)
from shared.work.table import COLUMNS, create_indexes, create_pauses, start
from shared.work.work import Performed, Settled, Started, Work, never, one_by_one
from shared.work.worker import Worker

__all__ = [
    "COLUMNS",
    "Busy",
    "Decision",
    "OnUnknown",
    "OutcomeUnknown",
    "Performed",
    "Policy",
    "Precedence",
    "Quiet",
    "Settled",
    "Started",
    "Status",
    "Together",
    "Withdrawn",
    "Work",
    "Worker",
    "backoff_s",
    "create_indexes",
    "create_pauses",
    "decide",
    "explain",
    "never",
    "one_by_one",
    "start",
]
