-- Drawn at random by the commit that wrote the line: a database that was set back
-- gives the line's number to another one. 0: written before there were marks.
ALTER TABLE journal ADD COLUMN mark INTEGER NOT NULL DEFAULT 0;
