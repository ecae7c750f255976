-- title: numbers that will never be messages, by reason
-- kind: report
-- row: a reason
SELECT reason, count(*) AS ranges, sum(last_seq - first_seq + 1) AS numbers
FROM voids GROUP BY reason ORDER BY numbers DESC
