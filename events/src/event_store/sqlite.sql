CREATE TABLE event_store (
    id             INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of the archive
    event_id       TEXT    NOT NULL UNIQUE,
    aggregate_type TEXT    NOT NULL,
    aggregate_id   TEXT    NOT NULL,
    event_type     TEXT    NOT NULL,
    event_data     BLOB    NOT NULL, -- the encoded message
    occurred_at    INTEGER NOT NULL,
    version        INTEGER NOT NULL,
    source         TEXT    NOT NULL,
    correlation_id TEXT,
    causation_id   TEXT,
    metadata       TEXT    NOT NULL, -- JSON: subject, traceparent
    created_at     INTEGER NOT NULL
) STRICT;

CREATE INDEX event_store_by_aggregate ON event_store (aggregate_type, aggregate_id, id);
CREATE INDEX event_store_by_type ON event_store (event_type, id);
CREATE INDEX event_store_by_time ON event_store (occurred_at);
CREATE INDEX event_store_by_correlation ON event_store (correlation_id, id);

CREATE TABLE dead_letter_queue (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    stream            TEXT    NOT NULL,
    sequence          INTEGER NOT NULL, -- the letter's own
    published_at      INTEGER NOT NULL, -- when the stream took the letter
    subject           TEXT    NOT NULL, -- the original's
    original_sequence INTEGER NOT NULL,
    message_id        TEXT,             -- the original's
    consumer          TEXT    NOT NULL,
    deliveries        INTEGER NOT NULL,
    reason            TEXT    NOT NULL,
    payload           BLOB    NOT NULL,
    headers           TEXT    NOT NULL, -- JSON: name and value of each
    created_at        INTEGER NOT NULL,
    UNIQUE (stream, sequence, published_at)
) STRICT;

CREATE INDEX dead_letter_queue_by_time ON dead_letter_queue (created_at);
