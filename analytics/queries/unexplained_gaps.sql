-- title: numbers that are neither a message nor in a void range
-- kind: violation
-- row: a range of numbers of a conversation that nobody can explain, and why it should be explained by now
SELECT conv_id, from_seq, to_seq, overdue AS why
FROM gaps WHERE overdue IS NOT NULL
ORDER BY conv_id, from_seq
