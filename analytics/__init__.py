"""All that touches DuckDB: history, audits, SQL. Reads the log beside the shards; no byte before it is verified."""
