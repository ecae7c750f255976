-- title: partitions' rows without a block, and blocks whose numbers are not exactly their segment's rows
-- kind: violation
-- row: a conversation in a segment: the numbers that it was granted, and those of its rows
WITH granted AS (
    SELECT shard, segment, conv_id, count(*) AS blocks, min(first_seq) AS first_seq, max(last_seq) AS last_seq
    FROM blocks GROUP BY ALL
), written AS (
    SELECT shard, segment, conv_id, count(*) AS rows, count(DISTINCT conv_seq) AS numbers,
           min(conv_seq) AS first_row, max(conv_seq) AS last_row
    FROM messages WHERE slot_of(shard) > 0 GROUP BY ALL
)
SELECT shard, segment, conv_id, blocks, first_seq, last_seq, rows, first_row, last_row
FROM granted FULL JOIN written USING (shard, segment, conv_id)
WHERE blocks IS DISTINCT FROM 1 OR first_row IS DISTINCT FROM first_seq OR last_row IS DISTINCT FROM last_seq
   OR rows <> last_seq - first_seq + 1 OR numbers <> rows
ORDER BY shard, segment, conv_id
