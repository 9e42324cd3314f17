-- Times are microseconds since the Unix epoch on the store's clock; ids are 16 bytes.

CREATE TABLE meta (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    -- Another one after a restore: cursors belong to a generation.
    generation INTEGER NOT NULL,
    -- The last commit's time: the clock goes on from here.
    clock      INTEGER NOT NULL
) STRICT;

-- A task is its log's first record, which holds all that never changes, and `fold`, which holds the rest and is small:
-- every append rewrites it. The other columns are derived from the two, for indexes. The lease columns are the lease.
CREATE TABLE task (
    no                INTEGER PRIMARY KEY,
    id                BLOB    NOT NULL UNIQUE,
    short             TEXT    NOT NULL,
    namespace         TEXT    NOT NULL,
    pool              TEXT    NOT NULL,
    agent             TEXT    NOT NULL,
    name              TEXT,
    group_id          BLOB,
    group_index       INTEGER,
    group_short       TEXT,
    state             TEXT    NOT NULL,
    ended_at          INTEGER,
    -- Only while it is queued and wanted running.
    score             INTEGER,
    lease_worker      BLOB,
    lease_incarnation BLOB,
    lease_known       INTEGER,
    lease_expires_at  INTEGER,
    -- Offset of the newest checkpoint's record, which holds it.
    checkpoint        INTEGER,
    -- When a limit of time is over that a controller measures.
    due_at            INTEGER,
    -- What became of it once it had failed for good: the task that does it again, nothing but zeros when it was purged.
    settled           BLOB,
    next_offset       INTEGER NOT NULL,
    fold              BLOB    NOT NULL
) STRICT;
CREATE INDEX task_short   ON task (short);
CREATE INDEX task_state   ON task (state, id, namespace);
CREATE INDEX task_name    ON task (name, id)                WHERE name IS NOT NULL;
CREATE INDEX task_group   ON task (group_id, group_index)   WHERE group_id IS NOT NULL;
CREATE INDEX task_groups  ON task (group_short)             WHERE group_short IS NOT NULL;
CREATE INDEX task_score   ON task (score, id)               WHERE score IS NOT NULL;
CREATE INDEX task_worker  ON task (lease_worker, id)        WHERE lease_worker IS NOT NULL;
CREATE INDEX task_expires ON task (lease_expires_at, id)    WHERE lease_expires_at IS NOT NULL;
CREATE INDEX task_due     ON task (due_at, id)              WHERE due_at IS NOT NULL;
CREATE INDEX task_dead    ON task (id, namespace)           WHERE state = 'failed' AND settled IS NULL;

-- Records that say what happened to a task: small, and kept as long as the task is.
CREATE TABLE lifecycle (
    task   INTEGER NOT NULL REFERENCES task (no),
    offset INTEGER NOT NULL,
    time   INTEGER NOT NULL,
    record BLOB    NOT NULL,
    PRIMARY KEY (task, offset)
) STRICT, WITHOUT ROWID;

-- Everything else of a log. Offsets between first and last that a chunk lacks are lifecycle rows.
CREATE TABLE chunk (
    no           INTEGER PRIMARY KEY,
    task         INTEGER NOT NULL REFERENCES task (no),
    first_offset INTEGER NOT NULL,
    last_offset  INTEGER NOT NULL,
    first_time   INTEGER NOT NULL,
    last_time    INTEGER NOT NULL,
    newlines     INTEGER NOT NULL,
    bytes        INTEGER NOT NULL,
    format       INTEGER NOT NULL,
    data         BLOB    NOT NULL
) STRICT;
CREATE UNIQUE INDEX chunk_offset ON chunk (task, first_offset, last_time);

CREATE TABLE worker (
    id          BLOB    PRIMARY KEY,
    incarnation BLOB    NOT NULL,
    name        TEXT    NOT NULL,
    namespace   TEXT    NOT NULL,
    pool        TEXT    NOT NULL,
    slots       INTEGER NOT NULL,
    agents      TEXT    NOT NULL,
    labels      TEXT    NOT NULL,
    containment TEXT    NOT NULL,
    build       TEXT    NOT NULL,
    resources   TEXT    NOT NULL,
    draining    INTEGER NOT NULL,
    seen_at     INTEGER NOT NULL,
    -- It has been said that it is.
    lost        INTEGER NOT NULL DEFAULT 0,
    -- The start of the controller that renewed its leases last.
    via         BLOB
) STRICT;

-- What failed again and again, and how long it is left alone. Only those about which anything is known.
CREATE TABLE breaker (
    scope TEXT    PRIMARY KEY,
    state TEXT    NOT NULL,
    at    INTEGER NOT NULL
) STRICT;

-- A loop that one controller at a time runs. The row stays when it is given back: terms only rise.
CREATE TABLE loop (
    name       TEXT    PRIMARY KEY,
    holder     BLOB,
    term       INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

-- A controller that lives, or lived a while ago.
CREATE TABLE controller (
    id          BLOB    PRIMARY KEY,
    incarnation BLOB    NOT NULL,
    name        TEXT    NOT NULL,
    addresses   TEXT    NOT NULL,
    build       TEXT    NOT NULL,
    since       INTEGER NOT NULL,
    seen_at     INTEGER NOT NULL,
    workers     INTEGER NOT NULL,
    viewers     INTEGER NOT NULL,
    in_touch    INTEGER NOT NULL
) STRICT;

-- What a controller knows of a worker that is connected to it, for the others.
CREATE TABLE report (
    worker           BLOB    PRIMARY KEY,
    controller       BLOB   NOT NULL,
    busy             INTEGER NOT NULL,
    cpus             INTEGER NOT NULL,
    load_milli       INTEGER NOT NULL,
    memory           INTEGER NOT NULL,
    memory_available INTEGER NOT NULL,
    rtt_us           INTEGER NOT NULL,
    at               INTEGER NOT NULL
) STRICT;

-- What somebody wants of a worker. The row stays when the worker is forgotten: generations only rise.
CREATE TABLE wish (
    worker     BLOB    PRIMARY KEY,
    desired    TEXT   NOT NULL,
    generation INTEGER NOT NULL,
    deadline   INTEGER,
    wished_by  TEXT   NOT NULL
) STRICT;

-- What all controllers of the mesh need, closed under a key that is not here.
CREATE TABLE item (
    name TEXT PRIMARY KEY,
    item BLOB NOT NULL
) STRICT;

CREATE TABLE token (
    id         TEXT    PRIMARY KEY,
    hash       BLOB    NOT NULL UNIQUE,
    role       TEXT    NOT NULL,
    namespace  TEXT    NOT NULL,
    name       TEXT,
    uses_left  INTEGER,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    created_by TEXT    NOT NULL,
    -- JSON; NULL: there are none.
    bounds     TEXT
) STRICT;

-- What workers may say of themselves, as JSON: those that may not say just anything.
CREATE TABLE bound (
    identity TEXT PRIMARY KEY,
    bounds   TEXT NOT NULL
) STRICT;

-- `closed` is opened by a key that is not here.
CREATE TABLE secret (
    namespace  TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    owner      TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    closed     BLOB    NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT;

CREATE TABLE certificate (
    serial    TEXT    PRIMARY KEY,
    identity  TEXT    NOT NULL,
    not_after INTEGER NOT NULL
) STRICT;
CREATE INDEX certificate_identity ON certificate (identity);

CREATE TABLE revoked (
    identity TEXT    PRIMARY KEY,
    at       INTEGER NOT NULL
) STRICT;

-- What was answered to a request, so that repeating it does nothing and says the same.
CREATE TABLE request (
    no        INTEGER PRIMARY KEY,
    principal TEXT    NOT NULL,
    kind      INTEGER NOT NULL,
    id        BLOB    NOT NULL,
    body      BLOB    NOT NULL,
    answer    BLOB    NOT NULL,
    at        INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX request_key ON request (id, kind, principal);
CREATE INDEX request_at ON request (at);

-- AUTOINCREMENT: a cursor is never given twice, not even after old events were deleted. No namespace: for administrators.
CREATE TABLE event (
    cursor    INTEGER PRIMARY KEY AUTOINCREMENT,
    at        INTEGER NOT NULL,
    namespace TEXT,
    kind      TEXT    NOT NULL,
    task      BLOB,
    worker    BLOB,
    text      TEXT    NOT NULL
) STRICT;
CREATE INDEX event_at ON event (at);

-- AUTOINCREMENT: a line's number is never given twice.
CREATE TABLE audit (
    no        INTEGER PRIMARY KEY AUTOINCREMENT,
    at        INTEGER NOT NULL,
    namespace TEXT    NOT NULL,
    principal TEXT    NOT NULL,
    action    TEXT    NOT NULL,
    target    TEXT    NOT NULL,
    result    TEXT    NOT NULL,
    count     INTEGER NOT NULL
) STRICT;
CREATE INDEX audit_at ON audit (at);
