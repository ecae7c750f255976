"""The write-ahead log: Parquet segments, the stores that hold them, recovery. Knows no Ray and no HTTP."""
