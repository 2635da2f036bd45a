"""What is wrong with a log, its guards and its database: facts read by SQL, then judged."""
