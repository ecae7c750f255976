-- title: numbers of hot groups that are in flight: granted, and neither written nor void yet
-- kind: report
-- row: a range of numbers, and since when there are messages above it
SELECT conv_id, from_seq, to_seq, above_since
FROM gaps WHERE overdue IS NULL
ORDER BY conv_id, from_seq
