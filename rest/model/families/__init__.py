"""Published families of models, read from and written to folders in their own layout."""
