-- State machines that wait for others (see edd-events).
CREATE TABLE sagas (
    id         TEXT    NOT NULL PRIMARY KEY,
    kind       TEXT    NOT NULL,
    state      TEXT    NOT NULL, -- running, completed, failed
    step       TEXT    NOT NULL,
    data       TEXT    NOT NULL, -- JSON
    deadline   INTEGER,          -- none: it waits for nothing
    attempts   INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX sagas_by_deadline ON sagas (deadline);
CREATE INDEX sagas_by_state ON sagas (kind, state, updated_at);
