"""What projects keep here: conversations, templates, and the usage that their clients log."""
