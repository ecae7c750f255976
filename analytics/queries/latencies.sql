-- title: from the sender's clock to the commit, where the sender told it (both clocks' errors included)
-- kind: report
-- row: all messages with a client_ts
-- combine: SELECT coalesce(sum(messages), 0)::BIGINT AS messages, min(delay_ms) FILTER (seen >= 0.5 * whole) AS p50_ms,
-- combine:        min(delay_ms) FILTER (seen >= 0.99 * whole) AS p99_ms
-- combine: FROM (SELECT *, sum(messages) OVER (ORDER BY delay_ms) AS seen, sum(messages) OVER () AS whole
-- combine:       FROM (SELECT delay_ms, sum(messages) AS messages FROM parts GROUP BY delay_ms))
SELECT epoch_ms(server_ts) - epoch_ms(client_ts) AS delay_ms, count(*) AS messages
FROM messages WHERE client_ts IS NOT NULL GROUP BY delay_ms
