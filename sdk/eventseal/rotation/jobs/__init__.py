"""The engine of re-encryption and migration jobs, with any number of workers."""
