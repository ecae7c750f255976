-- title: numbers that do not ascend in the order of their log
-- kind: violation
-- row: a message that stands behind one with a higher number (a second message of a number is another question)
WITH firsts AS (
    SELECT conv_id, shard, conv_seq, min(struct_pack(segment := segment, "row" := "row")) AS place
    FROM messages GROUP BY conv_id, shard, conv_seq
), placed AS (
    SELECT *, max(conv_seq) OVER (PARTITION BY conv_id, shard ORDER BY place
                                  ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS highest_before
    FROM firsts
)
SELECT conv_id, highest_before, conv_seq, shard, place.segment AS segment, place."row" AS "row"
FROM placed WHERE conv_seq < highest_before
ORDER BY conv_id, shard, segment, "row"
