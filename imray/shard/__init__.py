"""Who writes a log: shards and their partitions, each with its write loop."""
