-- gateway_db: what the events said, what was announced, what is in force.
-- Times are Unix milliseconds. A fact's (version, sequence) is the stamp of the
-- newest event on it; origin columns are JSON (file and line, or event).

CREATE TABLE containers (
    id TEXT PRIMARY KEY,
    -- Set by compute.container.*.created; until then the row only keeps facts.
    owner_id BIGINT,
    name TEXT,
    created_sequence BIGINT,
    created_origin TEXT,
    run_version BIGINT NOT NULL,
    run_sequence BIGINT NOT NULL,
    -- Set while it runs.
    address TEXT,
    ssh_host_key TEXT,
    run_origin TEXT,
    ssh_version BIGINT NOT NULL,
    ssh_sequence BIGINT NOT NULL,
    ssh_enabled BOOLEAN NOT NULL,
    https_version BIGINT NOT NULL,
    https_sequence BIGINT NOT NULL,
    https_enabled BOOLEAN NOT NULL
);

CREATE TABLE ingress_rules (
    -- Derived from container and port, the same after a rebuild.
    id BIGINT NOT NULL,
    container_id TEXT NOT NULL,
    port BIGINT NOT NULL,
    -- NULL: deleted, kept to order late events.
    target_port BIGINT,
    version BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    origin TEXT NOT NULL,
    PRIMARY KEY (container_id, port)
);

CREATE TABLE ssh_keys (
    id BIGINT PRIMARY KEY,
    user_id BIGINT NOT NULL,
    fingerprint TEXT NOT NULL,
    version BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    origin TEXT NOT NULL
);

-- A cache of what auth owns; names are not unique here.
CREATE TABLE users (
    id BIGINT PRIMARY KEY,
    username TEXT NOT NULL,
    display_name TEXT NOT NULL,
    version BIGINT NOT NULL,
    sequence BIGINT NOT NULL
);

-- What was deleted and is never revived.
CREATE TABLE tombstones (
    kind TEXT NOT NULL CHECK (kind IN ('container', 'key', 'user')),
    id TEXT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (kind, id)
);
CREATE INDEX tombstones_at ON tombstones (at);

-- Static routes in force, replaced with each new table.
CREATE TABLE static_routes (
    id BIGINT PRIMARY KEY,
    host TEXT NOT NULL,
    path_prefix TEXT NOT NULL,
    target TEXT NOT NULL,
    strip_prefix BOOLEAN NOT NULL,
    -- The whole route as JSON, with its options and its line in the file.
    spec TEXT NOT NULL,
    UNIQUE (host, path_prefix)
);

-- Events that were handled.
CREATE TABLE inbox (
    event_id TEXT PRIMARY KEY,
    at BIGINT NOT NULL
);
CREATE INDEX inbox_at ON inbox (at);

-- Events that wait to be published.
CREATE TABLE outbox (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    subject TEXT NOT NULL,
    payload BYTEA NOT NULL,
    correlation_id TEXT,
    causation_id TEXT,
    traceparent TEXT,
    created_at BIGINT NOT NULL
);

-- 'revision', 'rebuilding', 'position:STREAM': the last sequence handled, and
-- 'identity': which database this is.
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO meta (key, value)
VALUES ('identity', CAST(floor(random() * 9007199254740992) AS BIGINT));

-- Keys that seal TLS session tickets, so that replicas and restarts open each
-- other's. Secrets: whoever reads them can read recorded TLS 1.2 sessions that
-- were resumed while they were in force. Rows are deleted when they are old.
CREATE TABLE ticket_keys (
    -- Six hours since the epoch: one key for each.
    slot BIGINT PRIMARY KEY,
    -- 16 bytes, as tickets begin.
    name BYTEA NOT NULL,
    -- 32 bytes, for AES-256-GCM.
    secret BYTEA NOT NULL
);
