"""`stepdial check`: promises that only a server under load can keep, tried on a server of its own."""
