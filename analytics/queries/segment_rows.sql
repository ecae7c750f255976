-- title: segments whose rows are not as many, or not of the time, that their metadata says
-- kind: violation
-- row: such a segment
SELECT s.shard, s.segment, s.rows, count(r.conv_seq) AS rows_there, min(r.server_ts) AS first_ts, max(r.server_ts) AS last_ts
FROM segments s LEFT JOIN records r USING (shard, segment)
GROUP BY s.shard, s.segment, s.rows, s.server_ts
HAVING count(r.conv_seq) <> s.rows OR (s.rows > 0 AND (min(r.server_ts) <> s.server_ts OR max(r.server_ts) <> s.server_ts))
ORDER BY s.shard, s.segment
