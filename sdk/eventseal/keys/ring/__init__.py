"""The ring in memory: held keys, and how keys are opened, used for sealing, rotated and destroyed."""
