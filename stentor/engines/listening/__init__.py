"""What is heard beside words: whether somebody speaks, whether a wake word was said, whether a turn is over."""
