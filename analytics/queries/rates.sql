-- title: the busiest minutes of the busiest conversations
-- kind: report
-- row: a conversation and a minute
SELECT conv_id, date_trunc('minute', server_ts) AS minute, count(*) AS messages, sum(bytes) AS bytes
FROM messages GROUP BY ALL ORDER BY messages DESC, conv_id, minute LIMIT 20
