-- title: numbers that two messages have
-- kind: violation
-- row: a number and its messages
SELECT conv_id, conv_seq, count(*) AS messages, list(client_msg_id ORDER BY client_msg_id) AS ids
FROM messages GROUP BY conv_id, conv_seq HAVING count(*) > 1
ORDER BY conv_id, conv_seq
