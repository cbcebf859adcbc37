"""LLM backends, one file each, each answering for its own key, capabilities, price and identity."""
