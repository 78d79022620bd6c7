"""What the engines that speak share: texts in sentences, sound in many forms, and how they answer."""
