"""What a traced function does with its data."""
