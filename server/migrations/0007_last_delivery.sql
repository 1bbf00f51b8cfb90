-- The newest job that each device had (job ids rise with time), and when the server learned that: what lists show. One row a device,
-- in place of an index over every device of every job, of which an order to all would write a page for each device.
CREATE TABLE last_delivery (
    tenant       TEXT    NOT NULL,
    device       BLOB    NOT NULL,
    job          BLOB    NOT NULL,
    delivered_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, device)
) WITHOUT ROWID, STRICT;

-- Beside max(), the other columns are those of its row.
INSERT INTO last_delivery (tenant, device, job, delivered_at)
    SELECT tenant, device, max(job), coalesce(delivered_at, changed_at) FROM job_device
    WHERE typeof(device) = 'blob'
        AND (delivered_at IS NOT NULL OR state IN ('succeeded', 'failed', 'unsupported', 'refused'))
    GROUP BY tenant, device;

DROP INDEX job_device_device;
