-- title: grants that two segments used
-- kind: violation
-- row: a grant of a home shard, and the segments
SELECT home, sequencer, "grant", list(DISTINCT conv_id ORDER BY conv_id) AS conversations,
       list(DISTINCT shard || '/' || segment ORDER BY shard || '/' || segment) AS segments
FROM blocks GROUP BY home, sequencer, "grant" HAVING count(DISTINCT (shard, segment)) > 1
ORDER BY home, sequencer, "grant"
