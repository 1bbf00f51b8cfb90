-- A device's jobs, newest last (job ids rise with time): what is shown of the last one that it had.
CREATE INDEX job_device_device ON job_device (tenant, device, job);
