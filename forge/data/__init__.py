"""Rows: files, directories, the Hub, embedded tasks; what is cached of them."""
