"""Where latents fire in a corpus (harvest), and the windows of text drawn from it (contexts)."""
