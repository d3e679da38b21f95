-- gateway_db: what the events said, what was announced, what is in force.
-- Times are Unix milliseconds. A fact's (version, sequence) is the stamp of the
-- newest event on it; origin columns are JSON (file and line, or event).

CREATE TABLE containers (
    id TEXT PRIMARY KEY,
    -- Set by compute.container.*.created; until then the row only keeps facts.
    owner_id INTEGER,
    name TEXT,
    created_sequence INTEGER,
    created_origin TEXT,
    run_version INTEGER NOT NULL,
    run_sequence INTEGER NOT NULL,
    -- Set while it runs.
    address TEXT,
    ssh_host_key TEXT,
    run_origin TEXT,
    ssh_version INTEGER NOT NULL,
    ssh_sequence INTEGER NOT NULL,
    ssh_enabled INTEGER NOT NULL,
    https_version INTEGER NOT NULL,
    https_sequence INTEGER NOT NULL,
    https_enabled INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE ingress_rules (
    -- Derived from container and port, the same after a rebuild.
    id INTEGER NOT NULL,
    container_id TEXT NOT NULL,
    port INTEGER NOT NULL,
    -- NULL: deleted, kept to order late events.
    target_port INTEGER,
    version INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    origin TEXT NOT NULL,
    PRIMARY KEY (container_id, port)
) WITHOUT ROWID;

CREATE TABLE ssh_keys (
    id INTEGER PRIMARY KEY,
    user_id INTEGER NOT NULL,
    fingerprint TEXT NOT NULL,
    version INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    origin TEXT NOT NULL
);

-- A cache of what auth owns; names are not unique here.
CREATE TABLE users (
    id INTEGER PRIMARY KEY,
    username TEXT NOT NULL,
    display_name TEXT NOT NULL,
    version INTEGER NOT NULL,
    sequence INTEGER NOT NULL
);

-- What was deleted and is never revived.
CREATE TABLE tombstones (
    kind TEXT NOT NULL CHECK (kind IN ('container', 'key', 'user')),
    id TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE INDEX tombstones_at ON tombstones (at);

-- Static routes in force, replaced with each new table.
CREATE TABLE static_routes (
    id INTEGER PRIMARY KEY,
    host TEXT NOT NULL,
    path_prefix TEXT NOT NULL,
    target TEXT NOT NULL,
    strip_prefix INTEGER NOT NULL,
    -- The whole route as JSON, with its options and its line in the file.
    spec TEXT NOT NULL,
    UNIQUE (host, path_prefix)
);

-- Events that were handled.
CREATE TABLE inbox (
    event_id TEXT PRIMARY KEY,
    at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX inbox_at ON inbox (at);

-- Events that wait to be published.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    subject TEXT NOT NULL,
    payload BLOB NOT NULL,
    correlation_id TEXT,
    causation_id TEXT,
    traceparent TEXT,
    created_at INTEGER NOT NULL
);

-- 'revision', 'rebuilding', and 'position:STREAM': the last sequence handled.
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
