-- What every commit changed, in order: replicas follow each other by it, and
-- operators ask it about the past. Pruned down to the last row of each entity.
CREATE TABLE journal (
    -- In the order of the commits.
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    -- Of the table in force after it.
    revision INTEGER NOT NULL,
    -- Unix milliseconds.
    at INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('container', 'key', 'route', 'rule', 'user')),
    -- The container, key, user or host.
    name TEXT NOT NULL,
    -- The rule's port, the route's path.
    part TEXT NOT NULL,
    -- The event, as JSON; NULL: routes.yaml.
    cause TEXT,
    -- Its row as JSON; NULL: it is gone.
    after TEXT
);
CREATE INDEX journal_name ON journal (name, kind, part, number);
