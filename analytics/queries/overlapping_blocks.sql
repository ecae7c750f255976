-- title: blocks of a conversation that overlap: two writers were given the same numbers
-- kind: violation
-- row: a block, and how far blocks that begin below it reach
WITH ordered AS (
    SELECT *, max(last_seq) OVER (PARTITION BY conv_id ORDER BY first_seq, last_seq, shard, segment
                                  ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached
    FROM blocks
)
SELECT conv_id, first_seq, last_seq, reached, sequencer, "grant", shard, segment
FROM ordered WHERE first_seq <= reached
ORDER BY conv_id, first_seq
