"""What a run writes down: its folder, its journal, its records, and the view of them in MLflow."""
