"""The permanent history: one Delta table of sorted runs, what merges the log into it, and what may be deleted then."""
