"""Numbers of a conversation that are neither a message nor void, and which of them should be explained by now.

Owns one rule, for two questions: `unexplained_gaps` (a promise is broken) and `unsettled_blocks` (in flight).
"""

GAPS = """
-- Ranges that the log explains. What a control record says of the head closes with an empty one: all up to at_seq
-- was given out, so numbers that are missing just below it are a gap, too.
CREATE VIEW spans AS
    SELECT conv_id, conv_seq AS first_seq, conv_seq AS last_seq, shard, segment FROM messages
    UNION ALL
    SELECT conv_id, first_seq, last_seq, shard, segment FROM voids
    UNION ALL
    SELECT conv_id, at_seq + 1, at_seq, shard, segment FROM hot_groups;

CREATE TABLE raw_gaps AS
WITH before AS (
    SELECT conv_id, first_seq,
           coalesce(max(last_seq) OVER (PARTITION BY conv_id ORDER BY first_seq, last_seq
                                        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS covered
    FROM spans
)
SELECT conv_id, covered + 1 AS from_seq, first_seq - 1 AS to_seq
FROM before WHERE first_seq > covered + 1;

CREATE TABLE gaps AS
-- A gap counts if something above it surely stands on what this snapshot has.
WITH heads AS (
    SELECT conv_id, max(first_seq) AS head
    FROM spans SEMI JOIN raw_gaps USING (conv_id) ANTI JOIN unsure_segments USING (shard, segment)
    GROUP BY conv_id
), controls AS (
    SELECT *, lag(topics) OVER log AS topics_before, lag(epoch) OVER log AS epoch_before
    FROM hot_groups WINDOW log AS (PARTITION BY conv_id, shard ORDER BY segment, "row")
), groups AS (
    -- Everything up to `settled_to` was a message or void when the record was written: the conversation turned cold,
    -- or it was cold until now, or its home shard was restarted and has made void what its predecessor left.
    -- Other records (a higher ceiling, another number of partitions) come while blocks are in flight.
    SELECT conv_id, any_value(home_of(shard)) AS home,
           arg_max(topics, struct_pack(segment, "row")) > 0 AS hot, max(epoch) AS epoch,
           max(at_seq) FILTER (topics = 0 OR topics_before IS NULL OR topics_before = 0 OR epoch_before < epoch)
               AS settled_to
    FROM controls GROUP BY conv_id
), homes AS (
    SELECT home, max(epoch) AS epoch FROM segments WHERE slot = 0 AND rows > 0 GROUP BY home
), above AS (
    SELECT conv_id, conv_seq, min(server_ts) OVER (PARTITION BY conv_id ORDER BY conv_seq DESC) AS oldest
    FROM messages SEMI JOIN raw_gaps USING (conv_id)
)
SELECT gap.conv_id, gap.from_seq, gap.to_seq,
       CASE
           WHEN NOT coalesce(groups.hot, false) THEN 'it is not hot: its home shard alone writes it'
           WHEN gap.from_seq <= groups.settled_to THEN 'all up to ' || groups.settled_to || ' had been settled'
           WHEN homes.epoch > groups.epoch THEN 'its home shard went on in epoch ' || homes.epoch || ' without it'
           -- Clocks are used for this line only, and only to notice what was forgotten: never for an order.
           WHEN above.oldest < newest_record.ts - INTERVAL 60 SECOND THEN 'messages above it are older than a minute'
       END AS overdue,
       above.oldest AS above_since
FROM raw_gaps gap JOIN heads USING (conv_id) LEFT JOIN groups USING (conv_id) LEFT JOIN homes USING (home)
    CROSS JOIN newest_record ASOF LEFT JOIN above ON above.conv_id = gap.conv_id AND gap.to_seq < above.conv_seq
WHERE gap.to_seq < heads.head;
"""
