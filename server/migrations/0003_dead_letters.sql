-- Records that were refused, newest kept, bounded per tenant by the writer.
CREATE TABLE dead_letter (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant   TEXT    NOT NULL,
    at       INTEGER NOT NULL,
    via      BLOB    NOT NULL,
    stream   BLOB    NOT NULL, -- as in stream.key
    number   BLOB    NOT NULL, -- 8 bytes, big-endian: a stranger chooses it
    class    INTEGER NOT NULL,
    code     TEXT    NOT NULL,
    bytes    INTEGER NOT NULL,
    body     BLOB    NOT NULL
) STRICT;

CREATE INDEX dead_letter_tenant ON dead_letter (tenant, sequence);
