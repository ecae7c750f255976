-- title: numbers that are neither a message nor in a void range
-- kind: violation
-- row: a range of numbers of a conversation that nobody can explain
WITH spans AS (
    SELECT conv_id, conv_seq AS first_seq, conv_seq AS last_seq FROM messages
    UNION ALL
    SELECT conv_id, first_seq, last_seq FROM voids
), before AS (
    SELECT conv_id, first_seq,
           coalesce(max(last_seq) OVER (PARTITION BY conv_id ORDER BY first_seq, last_seq
                                        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS covered
    FROM spans
)
SELECT conv_id, covered + 1 AS from_seq, first_seq - 1 AS to_seq
FROM before WHERE first_seq > covered + 1
ORDER BY conv_id, from_seq
