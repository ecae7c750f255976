-- title: blocks that no home shard can have granted
-- kind: violation
-- row: a block, and what the home shard's log says against it
WITH controls AS (
    SELECT home_of(shard) AS home, conv_id, epoch AS sequencer, at_seq, last(topics ORDER BY segment, "row") AS topics,
           max(ceiling) AS ceiling
    FROM hot_groups GROUP BY ALL
), known AS (
    -- Each incarnation of a home shard begins with a record of every group that is hot, and numbers go on above what
    -- a record says. So the one that counts is the last of the same epoch below the block.
    SELECT * REPLACE (max(ceiling) OVER (PARTITION BY home, conv_id, sequencer ORDER BY at_seq) AS ceiling)
    FROM controls
), homes AS (
    SELECT DISTINCT home, epoch AS sequencer FROM segments WHERE slot = 0
), slots AS (
    SELECT home, max(topics) AS slots FROM known GROUP BY home
)
SELECT b.conv_id, b.first_seq, b.last_seq, b.sequencer, b."grant", b.shard, b.segment,
       CASE
           WHEN h.home IS NULL THEN 'its home shard has no epoch ' || b.sequencer
           WHEN k.topics IS NULL OR k.topics = 0 THEN 'the conversation was not hot'
           WHEN b.last_seq > k.ceiling THEN 'the ceiling was ' || k.ceiling
           WHEN b.slot > s.slots THEN 'there never were more than ' || s.slots || ' partitions'
       END AS why
-- what was written while the home shard's log was being read may rest on a record that the audit has not seen
FROM blocks b ANTI JOIN unsure_segments u ON u.shard = b.shard AND u.segment = b.segment
    LEFT JOIN homes h ON h.home = b.home AND h.sequencer = b.sequencer LEFT JOIN slots s ON s.home = b.home
    ASOF LEFT JOIN known k
        ON k.home = b.home AND k.conv_id = b.conv_id AND k.sequencer = b.sequencer AND k.at_seq < b.first_seq
WHERE why IS NOT NULL
ORDER BY conv_id, first_seq
