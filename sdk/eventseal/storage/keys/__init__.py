"""The key tables: rows, states, wrappings, closed KEKs and epochs."""
