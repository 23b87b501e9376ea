"""The board at equal bytes: its rows, how one is made, and its page."""
