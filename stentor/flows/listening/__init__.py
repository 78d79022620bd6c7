"""Sound that is heard as it comes in: what is said in it, and who speaks when. One stream at a time, metered."""
