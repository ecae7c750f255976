-- title: segments whose rows are not as many, or not of the time or the epoch, that their metadata says
-- kind: violation
-- row: such a segment
SELECT s.shard, s.segment, s.rows, coalesce(r.rows_there, 0) AS rows_there, r.first_ts, r.last_ts, s.epoch,
       r.first_epoch, r.last_epoch
FROM segments s LEFT JOIN segment_sums r USING (shard, segment)
WHERE coalesce(r.rows_there, 0) <> s.rows
   OR (s.rows > 0 AND (r.first_ts <> s.server_ts OR r.last_ts <> s.server_ts
                       OR r.first_epoch <> s.epoch OR r.last_epoch <> s.epoch))
ORDER BY shard, segment
