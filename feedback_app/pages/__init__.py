"""Pages people see: the account pages (plain HTML) and the rating desk (Gradio)."""
