-- title: numbers that are a message and void at once, or void twice
-- kind: violation
-- row: a message or void range that begins inside a void range
WITH spans AS (
    SELECT conv_id, first_seq, last_seq, reason, true AS void FROM voids
    UNION ALL
    SELECT conv_id, conv_seq, conv_seq, NULL, false FROM messages SEMI JOIN voids USING (conv_id)
), placed AS (
    SELECT conv_id, first_seq AS also_seq,
           max(CASE WHEN void THEN struct_pack(last_seq, first_seq, reason) END)
               OVER (PARTITION BY conv_id ORDER BY first_seq, void DESC, last_seq
                     ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS around
    FROM spans
)
SELECT conv_id, around.first_seq AS first_seq, around.last_seq AS last_seq, around.reason AS reason, also_seq
FROM placed WHERE also_seq <= around.last_seq
ORDER BY ALL
