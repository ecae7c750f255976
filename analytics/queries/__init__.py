"""One SQL file a question. Its first lines say `title`, `kind` (violation or report) and what a `row` means."""
