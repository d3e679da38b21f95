-- Times are milliseconds since the Unix epoch.

-- An id is never given twice, so an event about a deleted user can never hit a
-- newer one.
CREATE TABLE users (
    id            BIGINT  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    public_id     TEXT    NOT NULL UNIQUE,
    username      TEXT    NOT NULL UNIQUE,
    display_name  TEXT    NOT NULL,
    password_hash TEXT    NOT NULL, -- argon2id in PHC form
    version       BIGINT  NOT NULL, -- of the user's events, +1 with each change
    created_at    BIGINT  NOT NULL
);

CREATE TABLE sessions (
    token_hash BYTEA  NOT NULL PRIMARY KEY, -- SHA-256; the token itself is nowhere
    id         TEXT   NOT NULL UNIQUE,      -- public, names the session in events
    user_id    BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE INDEX sessions_by_user ON sessions (user_id, created_at);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

-- Names of deleted users. Others may take such a name, unless --admin-users
-- lists it: the role would go with it.
CREATE TABLE deleted_usernames (
    username TEXT NOT NULL PRIMARY KEY
);

-- Ids of deleted users: who asks to delete one again learns that it is done.
CREATE TABLE deleted_users (
    id BIGINT NOT NULL PRIMARY KEY
);

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
