-- title: numbers that do not ascend in the order of the log
-- kind: violation
-- row: a message with a number that is not above the one before it in the log
WITH placed AS (
    SELECT conv_id, conv_seq, shard, segment, "row",
           lag(conv_seq) OVER (PARTITION BY conv_id ORDER BY segment, "row") AS previous_seq
    FROM messages
)
SELECT conv_id, previous_seq, conv_seq, shard, segment, "row"
FROM placed WHERE conv_seq <= previous_seq
ORDER BY conv_id, segment, "row"
