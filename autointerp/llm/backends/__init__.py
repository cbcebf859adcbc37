"""One file a backend: each answers for its own key, capabilities, price and identity."""
