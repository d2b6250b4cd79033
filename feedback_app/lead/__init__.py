"""What leads see and do: dashboards as panels of tables and plots, decisions, settings, members. Without HTTP."""
