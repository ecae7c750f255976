-- title: hot groups: partitions, turns, and how many of the numbers given out became void
-- kind: report
-- row: a conversation that is or was hot
WITH turns AS (
    SELECT conv_id, arg_max(topics, struct_pack(segment, "row")) AS topics_now, max(ceiling) AS ceiling,
           count(*) FILTER (topics > 0) AS hot_records, count(*) FILTER (topics = 0) AS turned_cold,
           min(server_ts) AS hot_since
    FROM hot_groups GROUP BY conv_id
), written AS (
    SELECT conv_id, count(*) AS messages, count(*) FILTER (slot_of(shard) > 0) AS by_topics
    FROM messages SEMI JOIN turns USING (conv_id) GROUP BY conv_id
), lost AS (
    SELECT conv_id, count(*) AS void_ranges, sum(last_seq - first_seq + 1) AS void_numbers
    FROM voids GROUP BY conv_id
)
SELECT conv_id, topics_now, hot_since, hot_records, turned_cold, ceiling, coalesce(messages, 0) AS messages,
       coalesce(by_topics, 0) AS by_topics, coalesce(void_ranges, 0) AS void_ranges,
       coalesce(void_numbers, 0)::BIGINT AS void_numbers
FROM turns LEFT JOIN written USING (conv_id) LEFT JOIN lost USING (conv_id)
ORDER BY messages DESC, conv_id
