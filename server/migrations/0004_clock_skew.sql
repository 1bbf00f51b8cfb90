-- Whether the collection shown was dated more than 24 h ahead of the server when it came (INV-13).
ALTER TABLE inventory ADD COLUMN clock_skew INTEGER NOT NULL DEFAULT 0;
