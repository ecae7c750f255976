-- title: the largest conversations
-- kind: report
-- row: a conversation
SELECT conv_id, count(*) AS messages, max(conv_seq) AS last_seq, sum(bytes) AS bytes, count(DISTINCT sender) AS senders,
       count(DISTINCT shard << 40 | segment) AS commits, min(server_ts) AS first_commit, max(server_ts) AS last_commit
FROM messages GROUP BY conv_id ORDER BY messages DESC, conv_id LIMIT 20
