-- Times are milliseconds since the Unix epoch.

-- AUTOINCREMENT: an id is never given twice, so an event about a deleted user
-- can never hit a newer one.
CREATE TABLE users (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    public_id     TEXT    NOT NULL UNIQUE,
    username      TEXT    NOT NULL UNIQUE,
    display_name  TEXT    NOT NULL,
    password_hash TEXT    NOT NULL, -- argon2id in PHC form
    version       INTEGER NOT NULL, -- of the user's events, +1 with each change
    created_at    INTEGER NOT NULL
) STRICT;

CREATE TABLE sessions (
    token_hash BLOB    NOT NULL PRIMARY KEY, -- SHA-256; the token itself is nowhere
    id         TEXT    NOT NULL UNIQUE,      -- public, names the session in events
    user_id    INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_by_user ON sessions (user_id, created_at);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

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
