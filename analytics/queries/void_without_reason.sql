-- title: void ranges that are empty or give no reason
-- kind: violation
-- row: such a range
SELECT conv_id, first_seq, last_seq, reason, shard, segment, "row"
FROM voids
WHERE reason IS NULL OR reason = '' OR last_seq IS NULL OR last_seq < first_seq
ORDER BY ALL
