-- title: partitions' segments of an epoch that their home shard never had, or of an older one than those before
-- kind: violation
-- row: such a segment
WITH named AS (
    SELECT shard, segment, home, sequencer,
           max(sequencer) OVER (PARTITION BY shard ORDER BY segment ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
               AS sequencer_before
    FROM segments WHERE slot > 0
), unknown AS (
    -- what was written while the home shard's log was being read may name an epoch that the audit has not seen
    SELECT shard, segment FROM named ANTI JOIN unsure_segments USING (shard, segment)
    WHERE sequencer > 0 AND (home, sequencer) NOT IN (SELECT (home, epoch) FROM segments WHERE slot = 0)
)
SELECT shard, segment, sequencer, sequencer_before FROM named
WHERE sequencer < sequencer_before OR (shard, segment) IN (SELECT (shard, segment) FROM unknown)
ORDER BY shard, segment
