"""The engine of jobs: what re-encrypts and migrates items, in ranges, by any number of workers."""
