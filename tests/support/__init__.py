"""What tests of several kinds share: systems, loads, messages, stand-ins."""
