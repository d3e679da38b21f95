-- Ids of deleted users: who asks to delete one again learns that it is done.
CREATE TABLE deleted_users (
    id INTEGER PRIMARY KEY
) STRICT;

-- Until now every id up to the highest one ever given that is no user any more was one.
INSERT INTO deleted_users (id)
WITH RECURSIVE given (id) AS (
    SELECT 1 WHERE EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'users' AND seq >= 1)
    UNION ALL
    SELECT id + 1 FROM given
    WHERE id < (SELECT seq FROM sqlite_sequence WHERE name = 'users')
)
SELECT id FROM given WHERE id NOT IN (SELECT id FROM users);
