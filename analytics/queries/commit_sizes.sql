-- title: how large the commits are
-- kind: report
-- row: a log: a shard's own (slot 0) or a partition's
SELECT shard, home, slot, count(*) FILTER (rows > 0) AS commits, count(*) FILTER (rows = 0) AS fences,
       sum(rows) AS rows, quantile_disc(rows, 0.5) FILTER (rows > 0) AS rows_p50, max(rows) AS rows_max,
       sum(bytes) AS bytes
FROM segments GROUP BY shard, home, slot ORDER BY home, slot
