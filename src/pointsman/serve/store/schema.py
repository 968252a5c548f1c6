"""The tables of the store, and how an older store becomes a newer one.

Step n of `STEPS` brings a store from version n to n + 1; a step that was ever released is never
edited. The same text serves SQLite and PostgreSQL but for `{identity}`, the type of a number that
counts itself.
"""

VERSION = 2
APPLICATION = 0x706F696E  # "poin", the mark by which SQLite files of ours are known

_FIRST = (
    """CREATE TABLE keys (
        id {identity},
        name TEXT NOT NULL,
        hash TEXT UNIQUE,
        rate_per_minute DOUBLE PRECISION,
        budget BIGINT,
        period TEXT NOT NULL,
        points TEXT,
        floor TEXT,
        created DOUBLE PRECISION NOT NULL,
        revoked DOUBLE PRECISION
    )""",
    "CREATE UNIQUE INDEX keys_in_use ON keys (name) WHERE revoked IS NULL",
    # Requests of a server without keys are counted as well, on a key that nobody can present.
    """INSERT INTO keys (id, name, hash, period, created)
        VALUES (0, '(no key)', NULL, 'month', 0)""",
    """CREATE TABLE spending (
        key_id BIGINT NOT NULL,
        period TEXT NOT NULL,
        settled BIGINT NOT NULL,
        reserved BIGINT NOT NULL,
        requests BIGINT NOT NULL,
        pruned SMALLINT NOT NULL DEFAULT 0,
        PRIMARY KEY (key_id, period)
    )""",
    """CREATE TABLE ledger (
        request TEXT PRIMARY KEY,
        key_id BIGINT NOT NULL,
        period TEXT NOT NULL,
        amount BIGINT NOT NULL,
        cost BIGINT,
        state SMALLINT NOT NULL,
        process TEXT NOT NULL,
        reserved_at DOUBLE PRECISION NOT NULL,
        ended_at DOUBLE PRECISION
    )""",
    "CREATE INDEX ledger_open ON ledger (reserved_at) WHERE state = 0",
    """CREATE TABLE rates (
        key_id BIGINT PRIMARY KEY,
        full_at DOUBLE PRECISION NOT NULL
    )""",
    """CREATE TABLE processes (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        started DOUBLE PRECISION NOT NULL,
        beat DOUBLE PRECISION NOT NULL,
        ended DOUBLE PRECISION,
        state TEXT NOT NULL,
        metrics TEXT NOT NULL
    )""",
    """CREATE TABLE served (
        id TEXT PRIMARY KEY,
        time DOUBLE PRECISION NOT NULL,
        key BIGINT NOT NULL,
        query TEXT,
        task TEXT,
        point TEXT,
        model TEXT NOT NULL,
        propensity DOUBLE PRECISION,
        propensities TEXT,
        predicted_quality DOUBLE PRECISION,
        predicted_cost DOUBLE PRECISION,
        cost DOUBLE PRECISION,
        latency DOUBLE PRECISION,
        quality DOUBLE PRECISION,
        judged DOUBLE PRECISION
    )""",
    "CREATE INDEX served_time ON served (time)",
    "CREATE INDEX served_judged ON served (judged) WHERE judged IS NOT NULL",
)

_LEARNING = (
    "ALTER TABLE served ADD COLUMN answered TEXT",
    "ALTER TABLE served ADD COLUMN how TEXT",
    "ALTER TABLE served ADD COLUMN policy TEXT",
    "ALTER TABLE served ADD COLUMN context TEXT",
    "ALTER TABLE served ADD COLUMN heard SMALLINT NOT NULL DEFAULT 0",
    "DROP INDEX served_judged",
    """CREATE INDEX served_unheard ON served (policy, judged)
        WHERE judged IS NOT NULL AND heard = 0""",
    """CREATE TABLE learned (
        name TEXT PRIMARY KEY,
        version BIGINT NOT NULL,
        body TEXT NOT NULL
    )""",
    # What was settled by the hour, for budgets that are spread over a period of their own.
    """CREATE TABLE hours (
        key_id BIGINT NOT NULL,
        hour BIGINT NOT NULL,
        settled BIGINT NOT NULL,
        requests BIGINT NOT NULL,
        PRIMARY KEY (key_id, hour)
    )""",
)

STEPS: tuple[tuple[str, ...], ...] = (_FIRST, _LEARNING)


def steps_from(version: int, identity: str) -> list[str]:
    """The statements that bring a store of this version to `VERSION`."""
    return [statement.format(identity=identity) for step in STEPS[version:] for statement in step]
