"""imray: a message-ordering engine for chat. Durable, numbered, once."""

__version__ = "0.1.0"
