-- title: records that no writer makes: unknown kinds, numbers out of range, messages without id, sender or body
-- kind: violation
-- row: such a record
SELECT shard, segment, "row", conv_id, conv_seq, kind
FROM records
WHERE kind NOT IN (0, 1, 2, 3, 4, 5)
   OR conv_seq < CASE WHEN kind IN (0, 1) THEN 1 ELSE 0 END
   OR (kind = 0 AND (client_msg_id IS NULL OR sender IS NULL OR bytes IS NULL))
   OR (kind <> 0 AND slot_of(shard) <> 0)
UNION
SELECT shard, segment, "row", conv_id, at_seq, 2
FROM hot_groups
WHERE topics IS NULL OR topics NOT BETWEEN 0 AND 99 OR (topics > 0 AND (ceiling IS NULL OR ceiling < at_seq))
ORDER BY shard, segment, "row"
