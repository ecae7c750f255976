-- title: from the sender's clock to the commit, where the sender told it (both clocks' errors included)
-- kind: report
-- row: all messages with a client_ts
SELECT count(*) AS messages, quantile_disc(epoch_ms(server_ts) - epoch_ms(client_ts), 0.5) AS p50_ms,
       quantile_disc(epoch_ms(server_ts) - epoch_ms(client_ts), 0.99) AS p99_ms
FROM messages WHERE client_ts IS NOT NULL
