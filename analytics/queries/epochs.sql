-- title: how often each log's writer changed
-- kind: report
-- row: a log: a shard's own (slot 0) or a partition's
SELECT shard, home, slot, count(DISTINCT epoch) AS epochs, max(epoch) AS epoch,
       count(*) FILTER (by_home) AS fenced_by_home, max(server_ts) AS last_commit
FROM segments GROUP BY shard, home, slot ORDER BY home, slot
