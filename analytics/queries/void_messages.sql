-- title: numbers that are a message and void at once, or void twice
-- kind: violation
-- row: a message or void range inside a void range
SELECT v.conv_id, v.first_seq, v.last_seq, v.reason, m.conv_seq AS also_seq
FROM voids v JOIN messages m ON m.conv_id = v.conv_id AND m.conv_seq BETWEEN v.first_seq AND v.last_seq
UNION ALL
SELECT v.conv_id, v.first_seq, v.last_seq, v.reason, w.first_seq AS also_seq
FROM voids v JOIN voids w ON w.conv_id = v.conv_id AND w.first_seq BETWEEN v.first_seq AND v.last_seq
    AND (w.segment, w."row") > (v.segment, v."row")
ORDER BY ALL
