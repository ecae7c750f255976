-- title: records that no writer makes: numbers below 1, unknown kinds, messages without id, sender or body
-- kind: violation
-- row: such a record
SELECT shard, segment, "row", conv_id, conv_seq, kind
FROM records
WHERE conv_seq < 1 OR kind NOT IN (0, 1)
   OR (kind = 0 AND (client_msg_id IS NULL OR sender IS NULL OR bytes IS NULL))
ORDER BY shard, segment, "row"
