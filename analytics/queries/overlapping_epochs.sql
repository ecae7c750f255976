-- title: epochs that overlap, or that two writers shared
-- kind: violation
-- row: an epoch of a shard with what is wrong
WITH epochs AS (
    SELECT shard, epoch, min(segment) AS first_segment, max(segment) AS last_segment, count(*) AS segments,
           count(DISTINCT nonce) AS writers
    FROM segments GROUP BY shard, epoch
), ordered AS (
    SELECT *, lag(last_segment) OVER (PARTITION BY shard ORDER BY epoch) AS previous_last FROM epochs
)
SELECT shard, epoch, first_segment, last_segment, segments, writers
FROM ordered
WHERE writers > 1 OR segments <> last_segment - first_segment + 1 OR first_segment <> coalesce(previous_last, 0) + 1
ORDER BY shard, epoch
