-- Times are milliseconds since the Unix epoch. What is in force at the gateway is
-- the gateway's own; here is only what users asked for.

CREATE TABLE containers (
    id             TEXT    NOT NULL PRIMARY KEY,
    user_id        INTEGER NOT NULL,
    owner_username TEXT    NOT NULL,
    name           TEXT    NOT NULL,
    image          TEXT    NOT NULL,
    memory_mb      INTEGER NOT NULL,
    storage_gb     INTEGER NOT NULL,
    instance_type  TEXT    NOT NULL,
    status         TEXT    NOT NULL CHECK (status IN ('pending', 'running', 'stopped', 'failed')),
    failure        TEXT,               -- why it failed
    external_ip    TEXT,               -- of the last start
    ssh_host_key   TEXT,               -- of the last start
    ssh_enabled    INTEGER NOT NULL,
    https_enabled  INTEGER NOT NULL,
    run            INTEGER NOT NULL,   -- +1 with each start asked for: news of an older run is old
    announced      INTEGER NOT NULL,   -- whether others were last told that it runs
    version        INTEGER NOT NULL,   -- of the container's events, +1 with each
    created_at     INTEGER NOT NULL,
    started_at     INTEGER,
    stopped_at     INTEGER
) STRICT;

CREATE INDEX containers_by_user ON containers (user_id, created_at);

-- No foreign key: an address stays taken until the processes on it are gone,
-- which is after its container's row.
CREATE TABLE local_addresses (
    address      TEXT NOT NULL PRIMARY KEY,
    container_id TEXT NOT NULL UNIQUE
) STRICT;

-- Ingress rules as asked for. The gateway decides and confirms.
CREATE TABLE ingress_requests (
    container_id TEXT    NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    port         INTEGER NOT NULL,
    target_port  INTEGER NOT NULL,
    confirmed    INTEGER NOT NULL,
    version      INTEGER NOT NULL, -- the container's when this was asked for
    PRIMARY KEY (container_id, port)
) STRICT, WITHOUT ROWID;

-- AUTOINCREMENT: an id is never given twice.
CREATE TABLE ssh_keys (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id     INTEGER NOT NULL,
    name        TEXT    NOT NULL,
    public_key  TEXT    NOT NULL, -- type and base64, without comment
    fingerprint TEXT    NOT NULL, -- SHA256:...
    created_at  INTEGER NOT NULL,
    UNIQUE (user_id, fingerprint)
) STRICT;

CREATE TABLE container_keys (
    container_id TEXT    NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    key_id       INTEGER NOT NULL REFERENCES ssh_keys (id) ON DELETE CASCADE,
    PRIMARY KEY (container_id, key_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX container_keys_by_key ON container_keys (key_id);

-- What auth told about users. Names are not unique here: they may be given to
-- somebody else before we hear of the deletion.
CREATE TABLE user_cache (
    user_id      INTEGER NOT NULL PRIMARY KEY,
    username     TEXT    NOT NULL,
    display_name TEXT    NOT NULL,
    version      INTEGER NOT NULL,
    deleted_at   INTEGER           -- a tombstone: this id never comes back
) STRICT;

-- Ids of events that were handled.
CREATE TABLE inbox (
    event_id   TEXT    NOT NULL PRIMARY KEY,
    handled_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX inbox_by_time ON inbox (handled_at);

-- Events waiting for the stream's acknowledgement, oldest first (see edd-events).
CREATE TABLE outbox (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id       TEXT    NOT NULL UNIQUE,
    subject        TEXT    NOT NULL,
    payload        BLOB    NOT NULL,
    correlation_id TEXT,
    causation_id   TEXT,
    traceparent    TEXT,
    created_at     INTEGER NOT NULL
) STRICT;
