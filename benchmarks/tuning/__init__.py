"""The board of adapters: what is tuned, how a row is made, and which rows there are."""
