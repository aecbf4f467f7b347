"""What is found out about networks before they are trained: their costs, and how long their training takes."""
