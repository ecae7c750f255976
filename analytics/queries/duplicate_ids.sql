-- title: ids that have two numbers
-- kind: violation
-- row: an id and its numbers
SELECT conv_id, client_msg_id, count(*) AS messages, list(conv_seq ORDER BY conv_seq) AS numbers
FROM messages GROUP BY conv_id, client_msg_id HAVING count(*) > 1
ORDER BY conv_id, client_msg_id
