-- title: numbers that will never be messages, by reason
-- kind: report
-- row: a reason
-- combine: SELECT reason, sum(ranges)::BIGINT AS ranges, sum(numbers) AS numbers FROM parts GROUP BY reason
-- combine: ORDER BY numbers DESC
SELECT reason, count(*) AS ranges, sum(last_seq - first_seq + 1) AS numbers
FROM voids GROUP BY reason ORDER BY numbers DESC
