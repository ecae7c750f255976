-- title: how often each shard's writer changed
-- kind: report
-- row: a shard
SELECT shard, count(DISTINCT epoch) AS epochs, max(epoch) AS epoch, max(server_ts) AS last_commit
FROM segments GROUP BY shard ORDER BY shard
