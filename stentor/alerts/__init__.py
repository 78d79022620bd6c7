"""What operators want to be told of, whom to tell, and the outbox from which they are told."""
