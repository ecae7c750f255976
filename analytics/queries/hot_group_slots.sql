-- title: who wrote the hot groups: the home shard (slot 0) and each partition
-- kind: report
-- row: a conversation and a slot
WITH sizes AS (
    SELECT conv_id, shard, segment, count(*) AS messages
    FROM messages SEMI JOIN hot_groups USING (conv_id) GROUP BY ALL
)
SELECT conv_id, slot_of(shard) AS slot, sum(messages)::BIGINT AS messages,
       round(100 * sum(messages) / sum(sum(messages)) OVER (PARTITION BY conv_id), 1) AS percent, count(*) AS commits,
       quantile_disc(messages, 0.5) AS commit_p50, max(messages) AS commit_max
FROM sizes GROUP BY conv_id, shard
ORDER BY conv_id, slot
