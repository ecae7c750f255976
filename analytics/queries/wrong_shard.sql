-- title: conversations in a log of a shard that does not own them
-- kind: violation
-- row: a conversation, the log and its home shard, and where it belongs
SELECT DISTINCT r.conv_id, r.shard, r.home, c.shard AS belongs_to
FROM records r JOIN conversation_shards c USING (conv_id)
WHERE r.home <> c.shard
ORDER BY ALL
