-- Keys that seal TLS session tickets, so that replicas and restarts open each
-- other's. Secrets: whoever reads them can read recorded TLS 1.2 sessions that
-- were resumed while they were in force. Rows are deleted when they are old.
CREATE TABLE ticket_keys (
    -- Six hours since the epoch: one key for each.
    slot BIGINT PRIMARY KEY,
    -- 16 bytes, as tickets begin.
    name BLOB NOT NULL,
    -- 32 bytes, for AES-256-GCM.
    secret BLOB NOT NULL
);
