"""`stepdial bench`: load for any server that speaks the API, and what came of it."""
