"""Tables of batches, their jobs and the jobs' files.

Times are seconds since the epoch. A file is stored in compressed blocks, so that every machine of a
fleet can serve it. The tokens in a job's URLs are stored as hashes only.
"""

import sqlalchemy as sa

from bridge.outbox.schema import Serial, writes

schema = sa.MetaData()
batches = sa.Table(
    "batches",
    schema,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("source", sa.String(10), nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("key_name", sa.Text, nullable=False),
    # The first line of each of its jobs' files.
    sa.Column("header", sa.Text, nullable=False),
    sa.Column("refused", sa.Integer, nullable=False),
    sa.Column("repeated", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("touched_at", sa.Float, nullable=False),
    sa.Column("done_at", sa.Float),
)
batch_jobs = sa.Table(
    "batch_jobs",
    schema,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column(
        "batch_id", sa.String(32), sa.ForeignKey("batches.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("counts", sa.Boolean, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("md5", sa.String(32), nullable=False),
    sa.Column("oldest_at", sa.Float),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("sessionm_id", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_at", sa.Float, nullable=False),
    sa.Column("submitted_at", sa.Float),
    sa.Column("served_at", sa.Float),
    sa.Column("notified", sa.String(10), nullable=False),
    sa.Column("notified_at", sa.Float),
    sa.Column("failed_rows", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("file_token", sa.String(64), unique=True),
    sa.Column("notify_token", sa.String(64), unique=True),
    sa.Column("done_at", sa.Float),
    sqlite_autoincrement=True,
)
batch_blocks = sa.Table(
    "batch_blocks",
    schema,
    sa.Column(
        "job_id", sa.Integer, sa.ForeignKey("batch_jobs.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
batch_refused = sa.Table(
    "batch_refused",
    schema,
    sa.Column(
        "batch_id", sa.String(32), sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
# The writes of the outbox that are delivered by a job instead of a single call.
batch_writes = sa.Table(
    "batch_writes",
    schema,
    sa.Column(
        "write_seq", Serial, sa.ForeignKey(writes.c.seq, ondelete="CASCADE"), primary_key=True
    ),
    sa.Column(
        "job_id", sa.Integer, sa.ForeignKey("batch_jobs.id", ondelete="CASCADE"), nullable=False
    ),
)
sa.Index("batch_jobs_batch", batch_jobs.c.batch_id)
sa.Index("batch_jobs_state", batch_jobs.c.state, batch_jobs.c.next_at)
sa.Index("batch_writes_job", batch_writes.c.job_id)


def create(connection: sa.Connection) -> None:
    """Create the tables as they are now."""
    schema.create_all(connection)
