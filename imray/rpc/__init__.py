"""Connections between processes: frames, handshake, server, client. Knows nothing of what is asked."""
