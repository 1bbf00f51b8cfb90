-- The server's store, format 1. Times are milliseconds since 1970 UTC, ids 16-byte blobs, hashes 32-byte blobs.
-- The tenant is part of every key but those of secrets' hashes, which are looked up to learn the tenant.

CREATE TABLE tenant (
    name TEXT NOT NULL PRIMARY KEY
) WITHOUT ROWID, STRICT;

CREATE TABLE site (
    tenant TEXT NOT NULL REFERENCES tenant (name),
    name   TEXT NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID, STRICT;

-- (id, epoch, attachment, server, fence) says which server owns the node's session: with one server, `server` is NULL
-- and `fence` 0; several servers on one database make every session write conditional on the fence.
CREATE TABLE node (
    tenant       TEXT    NOT NULL,
    id           BLOB    NOT NULL,
    role         TEXT    NOT NULL,
    site         TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    name_folded  TEXT    NOT NULL,
    host_name    TEXT    NOT NULL,
    platform     TEXT    NOT NULL,
    capabilities TEXT    NOT NULL, -- JSON list
    kind         TEXT    NOT NULL,
    epoch        INTEGER NOT NULL,
    attachment   INTEGER NOT NULL,
    server       BLOB,
    fence        INTEGER NOT NULL DEFAULT 0,
    route        BLOB    NOT NULL, -- ids one after another, nearest the server first
    last_contact INTEGER,
    enrolled_at  INTEGER NOT NULL,
    revoked_at   INTEGER,
    key_hash     BLOB    NOT NULL,
    tags         TEXT    NOT NULL, -- JSON list
    PRIMARY KEY (tenant, id)
) WITHOUT ROWID, STRICT;

-- A revoked node keeps its name in the history but does not keep it from its successor.
CREATE UNIQUE INDEX node_name ON node (tenant, role, name_folded) WHERE revoked_at IS NULL;

CREATE TABLE token (
    hash       BLOB    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    role       TEXT    NOT NULL,
    site       TEXT    NOT NULL,
    kind       TEXT    NOT NULL,
    uses_left  INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) WITHOUT ROWID, STRICT;

CREATE TABLE api_token (
    hash   BLOB NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    name   TEXT NOT NULL
) WITHOUT ROWID, STRICT;

-- Envelope and arguments stand last: a read that does not name them does not touch their pages.
CREATE TABLE job (
    tenant     TEXT    NOT NULL,
    id         BLOB    NOT NULL,
    term       INTEGER NOT NULL,
    number     INTEGER NOT NULL,
    trace      BLOB    NOT NULL,
    verb       TEXT    NOT NULL,
    command    TEXT    NOT NULL,
    selector   TEXT    NOT NULL,
    class      TEXT    NOT NULL,
    ordered_by TEXT    NOT NULL,
    issued_at  INTEGER NOT NULL,
    fetch_by   INTEGER NOT NULL,
    report_by  INTEGER NOT NULL,
    envelope   BLOB    NOT NULL, -- MessagePack
    args       BLOB    NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT;

CREATE UNIQUE INDEX job_number ON job (tenant, term, number);

-- `device` is a 16-byte blob, or the administrator's words where no such device exists.
CREATE TABLE job_device (
    tenant     TEXT    NOT NULL,
    job        BLOB    NOT NULL,
    device     ANY     NOT NULL,
    leaf       INTEGER,
    epoch      INTEGER NOT NULL,
    state      TEXT    NOT NULL,
    reason     TEXT,
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, job, device)
) WITHOUT ROWID, STRICT;

-- How many devices of a job are in a state, kept by the writer at issue and by the trigger afterwards, so that a list
-- of jobs costs nothing per device.
CREATE TABLE job_count (
    tenant TEXT    NOT NULL,
    job    BLOB    NOT NULL,
    state  TEXT    NOT NULL,
    n      INTEGER NOT NULL,
    PRIMARY KEY (tenant, job, state)
) WITHOUT ROWID, STRICT;

CREATE TRIGGER job_device_counted AFTER UPDATE OF state ON job_device WHEN OLD.state <> NEW.state BEGIN
    UPDATE job_count SET n = n - 1 WHERE tenant = OLD.tenant AND job = OLD.job AND state = OLD.state;
    INSERT INTO job_count (tenant, job, state, n) VALUES (NEW.tenant, NEW.job, NEW.state, 1)
        ON CONFLICT DO UPDATE SET n = n + 1;
END;

CREATE TABLE job_result (
    tenant     TEXT    NOT NULL,
    job        BLOB    NOT NULL,
    device     BLOB    NOT NULL,
    exit_code  INTEGER,
    truncated  INTEGER NOT NULL,
    started_at INTEGER,
    ended_at   INTEGER NOT NULL,
    stdout     BLOB    NOT NULL,
    stderr     BLOB    NOT NULL,
    PRIMARY KEY (tenant, job, device)
) STRICT;

CREATE TABLE stream (
    tenant TEXT    NOT NULL,
    key    BLOB    NOT NULL, -- node, epoch, incarnation, lane: 29 bytes
    upto   INTEGER NOT NULL,
    hash   BLOB    NOT NULL,
    PRIMARY KEY (tenant, key)
) WITHOUT ROWID, STRICT;

-- The columns after `settings_version` are what lists show, so that no list parses sections.
CREATE TABLE inventory (
    tenant           TEXT    NOT NULL,
    device           BLOB    NOT NULL,
    digest           BLOB    NOT NULL,
    collected_at     INTEGER NOT NULL,
    settings_version INTEGER NOT NULL,
    os               TEXT    NOT NULL,
    cpu              TEXT    NOT NULL,
    memory_bytes     INTEGER,
    packages         INTEGER NOT NULL,
    PRIMARY KEY (tenant, device)
) WITHOUT ROWID, STRICT;

CREATE TABLE inventory_section (
    tenant  TEXT NOT NULL,
    device  BLOB NOT NULL,
    section TEXT NOT NULL,
    items   TEXT NOT NULL, -- JSON object
    PRIMARY KEY (tenant, device, section)
) STRICT;

-- Devices whose inventory is asked for anew, whether or not the server holds any.
CREATE TABLE inventory_wanted (
    tenant TEXT NOT NULL,
    device BLOB NOT NULL,
    PRIMARY KEY (tenant, device)
) WITHOUT ROWID, STRICT;

CREATE TABLE inventory_history (
    sequence     INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant       TEXT    NOT NULL,
    device       BLOB    NOT NULL,
    collected_at INTEGER NOT NULL,
    report       BLOB    NOT NULL -- MessagePack
) STRICT;

CREATE INDEX inventory_history_device ON inventory_history (tenant, device, sequence);

CREATE TABLE document (
    tenant   TEXT    NOT NULL,
    kind     TEXT    NOT NULL,
    site     TEXT    NOT NULL,
    term     INTEGER NOT NULL,
    version  INTEGER NOT NULL,
    envelope BLOB    NOT NULL, -- MessagePack
    PRIMARY KEY (tenant, kind, site)
) STRICT;

CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID, STRICT;

CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant   TEXT    NOT NULL,
    at       INTEGER NOT NULL,
    who      TEXT    NOT NULL,
    what     TEXT    NOT NULL,
    detail   TEXT    NOT NULL
) STRICT;

CREATE INDEX audit_tenant ON audit (tenant, sequence);
