-- title: conversations in a shard that does not own them
-- kind: violation
-- row: a conversation, where it is and where it belongs
SELECT DISTINCT r.conv_id, r.shard, c.shard AS belongs_to
FROM records r JOIN conversation_shards c USING (conv_id)
WHERE r.shard <> c.shard
ORDER BY ALL
