"""What is asked of a row and how an answer is judged, one module per kind of answer."""
