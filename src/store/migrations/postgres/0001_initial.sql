-- Run in the schema `ado`. Times are microseconds since the Unix epoch on the store's clock; days are counted from there.
-- Text is compared byte by byte: ranges of short ids must not depend on a locale.
-- No foreign keys: only the store writes here, and a check per row would cost as much as the row.

CREATE TABLE meta (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    application text    NOT NULL,
    version     integer NOT NULL,
    -- Another one after a restore: cursors belong to a generation.
    generation  bigint  NOT NULL,
    -- How far the store's clock is ahead of the server's: the sum of that one's jumps back.
    lead        bigint  NOT NULL DEFAULT 0,
    -- A time that was shown: the clock does not begin below it.
    clock       bigint  NOT NULL,
    -- Added to transaction ids in cursors of events; see the module `events`.
    event_base  bigint  NOT NULL DEFAULT 0,
    -- At least the highest cursor of an event that was deleted.
    event_last  bigint  NOT NULL DEFAULT 0
);

-- A task is its log's first record, which holds all that never changes, and `fold`, which holds the rest and is small:
-- every append rewrites it. The other columns are derived from the two, for indexes. The lease columns are the lease.
-- An append changes no indexed column, so a page with some room takes the new version and no index is touched.
CREATE TABLE task (
    id                uuid   PRIMARY KEY,
    short             text   COLLATE "C" NOT NULL,
    namespace         text   COLLATE "C" NOT NULL,
    pool              text   COLLATE "C" NOT NULL,
    agent             text   COLLATE "C" NOT NULL,
    name              text   COLLATE "C",
    group_id          uuid,
    group_index       bigint,
    group_short       text   COLLATE "C",
    state             text   COLLATE "C" NOT NULL,
    ended_at          bigint,
    -- Only while it is queued and wanted running.
    score             bigint,
    lease_worker      uuid,
    lease_incarnation uuid,
    lease_known       boolean,
    lease_expires_at  bigint,
    -- Offset of the newest checkpoint's record, which holds it.
    checkpoint        bigint,
    -- When a limit of time is over that a controller measures.
    due_at            bigint,
    -- What became of it once it had failed for good: the task that does it again, nothing but zeros when it was purged.
    settled           uuid,
    next_offset       bigint NOT NULL,
    -- The last record's: times never fall along a log.
    last_time         bigint NOT NULL,
    fold              bytea  NOT NULL
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
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
    task          uuid   NOT NULL,
    record_offset bigint NOT NULL,
    time          bigint NOT NULL,
    record        bytea  NOT NULL,
    PRIMARY KEY (task, record_offset)
);

-- Everything else of a log. Offsets between first and last that a chunk lacks are lifecycle rows. The day is that of the
-- task's creation, as its id says: a log lies in one partition, and old ones are dropped whole.
CREATE TABLE chunk (
    day          integer  NOT NULL,
    task         uuid     NOT NULL,
    first_offset bigint   NOT NULL,
    last_offset  bigint   NOT NULL,
    first_time   bigint   NOT NULL,
    last_time    bigint   NOT NULL,
    newlines     bigint   NOT NULL,
    bytes        bigint   NOT NULL,
    format       smallint NOT NULL,
    data         bytea    NOT NULL,
    PRIMARY KEY (day, task, first_offset)
) PARTITION BY RANGE (day);
-- It is compressed already, or cannot be.
ALTER TABLE chunk ALTER data SET STORAGE EXTERNAL;

-- Makes the partition of a day if there is none. Attaching one disturbs neither readers nor writers; making it in place
-- would wait for both.
CREATE FUNCTION make_partition(wanted integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    part text := 'chunk_' || to_char(date '1970-01-01' + wanted, 'YYYYMMDD');
BEGIN
    IF to_regclass(part) IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('ado partitions'), 0);
    -- Not by its name again: that it is not there is remembered until a relation is locked.
    IF EXISTS (SELECT FROM pg_class WHERE relname = part AND relnamespace = 'ado'::regnamespace) THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE chunk INCLUDING ALL, CHECK (day = %s))', part, wanted);
    EXECUTE format('ALTER TABLE chunk ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', part, wanted, wanted + 1);
END
$$;

CREATE TABLE worker (
    id          uuid    PRIMARY KEY,
    incarnation uuid    NOT NULL,
    name        text    NOT NULL,
    namespace   text    NOT NULL,
    pool        text    NOT NULL,
    slots       bigint  NOT NULL,
    agents      text    NOT NULL,
    labels      text    NOT NULL,
    containment text    NOT NULL,
    build       text    NOT NULL,
    resources   text    NOT NULL,
    draining    boolean NOT NULL,
    seen_at     bigint  NOT NULL,
    -- It has been said that it is.
    lost        boolean NOT NULL DEFAULT false,
    -- The start of the controller that renewed its leases last.
    via         uuid
) WITH (fillfactor = 60);

-- What failed again and again, and how long it is left alone. Only those about which anything is known.
CREATE TABLE breaker (
    scope text   COLLATE "C" PRIMARY KEY,
    state text   NOT NULL,
    at    bigint NOT NULL
);

-- A loop that one controller at a time runs. The row stays when it is given back: terms only rise.
CREATE TABLE loop (
    name       text   PRIMARY KEY,
    holder     uuid,
    term       bigint NOT NULL,
    expires_at bigint NOT NULL
) WITH (fillfactor = 60);

-- A controller that lives, or lived a while ago.
CREATE TABLE controller (
    id          uuid    PRIMARY KEY,
    incarnation uuid    NOT NULL,
    name        text    NOT NULL,
    addresses   text    NOT NULL,
    build       text    NOT NULL,
    since       bigint  NOT NULL,
    seen_at     bigint  NOT NULL,
    workers     bigint  NOT NULL,
    viewers     bigint  NOT NULL,
    in_touch    bigint  NOT NULL
) WITH (fillfactor = 60);

-- What a controller knows of a worker that is connected to it, for the others.
CREATE TABLE report (
    worker           uuid   PRIMARY KEY,
    controller       uuid   NOT NULL,
    busy             bigint NOT NULL,
    cpus             bigint NOT NULL,
    load_milli       bigint NOT NULL,
    memory           bigint NOT NULL,
    memory_available bigint NOT NULL,
    rtt_us           bigint NOT NULL,
    at               bigint NOT NULL
) WITH (fillfactor = 60);

-- What somebody wants of a worker. The row stays when the worker is forgotten: generations only rise.
CREATE TABLE wish (
    worker     uuid   PRIMARY KEY,
    desired    text   NOT NULL,
    generation bigint NOT NULL,
    deadline   bigint,
    wished_by  text   NOT NULL
);

-- What all controllers of the mesh need, closed under a key that is not here.
CREATE TABLE item (
    name text  COLLATE "C" PRIMARY KEY,
    item bytea NOT NULL
);

CREATE TABLE token (
    id         text   COLLATE "C" PRIMARY KEY,
    hash       bytea  NOT NULL UNIQUE,
    role       text   NOT NULL,
    namespace  text   COLLATE "C" NOT NULL,
    name       text,
    uses_left  bigint,
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    created_by text   NOT NULL,
    -- JSON; NULL: there are none.
    bounds     text
);

-- What workers may say of themselves, as JSON: those that may not say just anything.
CREATE TABLE bound (
    identity text COLLATE "C" PRIMARY KEY,
    bounds   text NOT NULL
);

-- `closed` is opened by a key that is not here.
CREATE TABLE secret (
    namespace  text   COLLATE "C" NOT NULL,
    name       text   COLLATE "C" NOT NULL,
    version    bigint NOT NULL,
    owner      text   COLLATE "C" NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    closed     bytea  NOT NULL,
    PRIMARY KEY (namespace, name)
);

CREATE TABLE certificate (
    serial    text   COLLATE "C" PRIMARY KEY,
    identity  text   COLLATE "C" NOT NULL,
    not_after bigint NOT NULL
);
CREATE INDEX certificate_identity ON certificate (identity);

CREATE TABLE revoked (
    identity text   COLLATE "C" PRIMARY KEY,
    at       bigint NOT NULL
);

-- What was answered to a request, so that repeating it does nothing and says the same. Whoever inserts the key first
-- decides; the answer follows in the same transaction.
CREATE TABLE request (
    id        uuid    NOT NULL,
    kind      integer NOT NULL,
    principal text    COLLATE "C" NOT NULL,
    body      bytea   NOT NULL,
    answer    bytea   NOT NULL,
    at        bigint  NOT NULL,
    PRIMARY KEY (id, kind, principal)
) WITH (fillfactor = 60);
CREATE INDEX request_at ON request (at);

-- No namespace: for administrators.
CREATE TABLE event (
    cursor    bigint PRIMARY KEY,
    at        bigint NOT NULL,
    namespace text   COLLATE "C",
    kind      text   NOT NULL,
    task      uuid,
    worker    uuid,
    text      text   NOT NULL
);
CREATE INDEX event_at ON event (at);

CREATE TABLE audit (
    no        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        bigint NOT NULL,
    namespace text   COLLATE "C" NOT NULL,
    principal text   NOT NULL,
    action    text   NOT NULL,
    target    text   NOT NULL,
    result    text   NOT NULL,
    count     bigint NOT NULL
);
CREATE INDEX audit_at ON audit (at);
