-- Names of deleted users. Others may take such a name, unless --admin-users
-- lists it: the role would go with it.
CREATE TABLE deleted_usernames (
    username TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;
