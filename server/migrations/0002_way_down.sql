-- Where an order is on its way down, and what came late.

-- Children to which the order was ever offered for this device and that have not given it back: 16-byte ids one after
-- another. Durable before the first send to each.
ALTER TABLE job_device ADD COLUMN holders BLOB NOT NULL DEFAULT x'';
-- When the server learned that the device has it.
ALTER TABLE job_device ADD COLUMN delivered_at INTEGER;
-- The agent's result replaced an end that the server had concluded from silence.
ALTER TABLE job_device ADD COLUMN late INTEGER NOT NULL DEFAULT 0;

-- The job that a steering order steers, or whose remaining devices this one is for.
ALTER TABLE job ADD COLUMN origin BLOB;
CREATE INDEX job_origin ON job (tenant, origin) WHERE origin IS NOT NULL;
