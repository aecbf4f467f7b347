"""What people read: tables, sentences, figures and the HTML page."""
