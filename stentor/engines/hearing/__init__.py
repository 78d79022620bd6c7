"""What the engines that hear share: reading sound files, cutting them at silences, and how they answer."""
