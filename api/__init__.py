"""The HTTP gateway. All that touches HTTP on the server's side is here, and only here."""
