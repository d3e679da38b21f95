-- Times are milliseconds since the Unix epoch. What is in force at the gateway is
-- the gateway's own; here is only what users asked for.

CREATE TABLE containers (
    id             TEXT    NOT NULL PRIMARY KEY,
    user_id        BIGINT  NOT NULL,
    owner_username TEXT    NOT NULL,
    name           TEXT    NOT NULL,
    image          TEXT    NOT NULL,
    memory_mb      INTEGER NOT NULL,
    storage_gb     INTEGER NOT NULL,
    instance_type  TEXT    NOT NULL,
    status         TEXT    NOT NULL CHECK (status IN ('pending', 'running', 'stopped', 'failed')),
    failure        TEXT,             -- why it failed
    external_ip    TEXT,             -- of the last start
    ssh_host_key   TEXT,             -- of the last start
    ssh_enabled    BOOLEAN NOT NULL,
    https_enabled  BOOLEAN NOT NULL,
    run            BIGINT  NOT NULL, -- +1 with each start asked for: news of an older run is old
    announced      BOOLEAN NOT NULL, -- whether others were last told that it runs
    version        BIGINT  NOT NULL, -- of the container's events, +1 with each
    created_at     BIGINT  NOT NULL,
    started_at     BIGINT,
    stopped_at     BIGINT
);

CREATE INDEX containers_by_user ON containers (user_id, created_at);

-- No foreign key: an address stays taken until the processes on it are gone,
-- which is after its container's row.
CREATE TABLE local_addresses (
    address      TEXT NOT NULL PRIMARY KEY,
    container_id TEXT NOT NULL UNIQUE
);

-- Ingress rules as asked for. The gateway decides and confirms.
CREATE TABLE ingress_requests (
    container_id TEXT    NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    port         INTEGER NOT NULL,
    target_port  INTEGER NOT NULL,
    confirmed    BOOLEAN NOT NULL,
    version      BIGINT  NOT NULL, -- the container's when this was asked for
    PRIMARY KEY (container_id, port)
);

-- An id is never given twice.
CREATE TABLE ssh_keys (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id     BIGINT NOT NULL,
    name        TEXT   NOT NULL,
    public_key  TEXT   NOT NULL, -- type and base64, without comment
    fingerprint TEXT   NOT NULL, -- SHA256:...
    created_at  BIGINT NOT NULL,
    UNIQUE (user_id, fingerprint)
);

CREATE TABLE container_keys (
    container_id TEXT   NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    key_id       BIGINT NOT NULL REFERENCES ssh_keys (id) ON DELETE CASCADE,
    PRIMARY KEY (container_id, key_id)
);

CREATE INDEX container_keys_by_key ON container_keys (key_id);

-- What auth told about users. Names are not unique here: they may be given to
-- somebody else before we hear of the deletion.
CREATE TABLE user_cache (
    user_id      BIGINT NOT NULL PRIMARY KEY,
    username     TEXT   NOT NULL,
    display_name TEXT   NOT NULL,
    version      BIGINT NOT NULL,
    deleted_at   BIGINT           -- a tombstone: this id never comes back
);

-- Ids of events that were handled.
CREATE TABLE inbox (
    event_id   TEXT   NOT NULL PRIMARY KEY,
    handled_at BIGINT NOT NULL
);

CREATE INDEX inbox_by_time ON inbox (handled_at);

-- Events waiting for the stream's acknowledgement, oldest first (see edd-events).
CREATE TABLE outbox (
    id             BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id       TEXT   NOT NULL UNIQUE,
    subject        TEXT   NOT NULL,
    payload        BYTEA  NOT NULL,
    correlation_id TEXT,
    causation_id   TEXT,
    traceparent    TEXT,
    created_at     BIGINT NOT NULL
);
